// A Node function on the unmodified aws-lambda-ric.
//
//   cd examples/node && npm install
//   sandboxd run --runtime nodejs20.x --handler index.handler examples/node
export const handler = async (event, context) => {
  console.log('handling', context.awsRequestId);
  return { requestId: context.awsRequestId, node: process.version, event };
};
