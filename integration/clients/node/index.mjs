// The function of the clients matrix on aws-lambda-ric. What all functions of the
// matrix do is said in ../../clients_test.go.
import { existsSync } from 'node:fs';
import { setTimeout } from 'node:timers/promises';

class Refused extends Error {
  name = 'Refused';
}

let calls = 0;

export const handler = async (event, context) => {
  calls += 1;
  switch (event.do) {
    case 'fail':
      throw new Refused('as asked');
    case 'log':
      console.warn('a message');
      break;
    case 'sleep':
      await setTimeout(3600 * 1000);
  }
  return {
    requestId: context.awsRequestId,
    function: context.functionName,
    version: context.functionVersion,
    memory: Number(context.memoryLimitInMB),
    calls,
    event,
  };
};

export const stream = awslambda.streamifyResponse(async (event, responseStream) => {
  responseStream.write('first ');
  while (!existsSync('go-on')) {
    await setTimeout(5);
  }
  responseStream.end('second');
});
