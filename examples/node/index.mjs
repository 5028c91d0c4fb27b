// A Node function on the unmodified aws-lambda-ric.
//
//   apt-get install autoconf automake libtool cmake g++ make xz-utils python3   # the client is compiled
//   cd examples/node && npm install                                             # some minutes
//   sandboxd run --runtime nodejs20.x --handler index.handler examples/node
export const handler = async (event, context) => {
  console.log('handling', context.awsRequestId);
  return { requestId: context.awsRequestId, node: process.version, event };
};
