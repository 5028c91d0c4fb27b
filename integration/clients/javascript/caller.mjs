// Calls a function through @aws-sdk/client-lambda and prints what came back, as
// ../../callers_test.go says.
import { InvokeCommand, InvokeWithResponseStreamCommand, LambdaClient } from '@aws-sdk/client-lambda';

const [endpoint, call, name, payload] = process.argv.slice(2);
const client = new LambdaClient({ endpoint, maxAttempts: 1 });
const text = (bytes) => (bytes ? Buffer.from(bytes).toString() : '');
const print = (value) => console.log(JSON.stringify(value));

if (call === 'stream') {
  const answer = await client.send(new InvokeWithResponseStreamCommand({ FunctionName: name, Payload: payload, LogType: 'Tail' }));
  const seen = { status: answer.StatusCode, version: answer.ExecutedVersion, id: answer.$metadata.requestId };
  for await (const event of answer.EventStream) {
    if (event.PayloadChunk) {
      print({ chunk: text(event.PayloadChunk.Payload) });
    } else {
      seen.error = event.InvokeComplete.ErrorCode;
      seen.details = event.InvokeComplete.ErrorDetails;
      seen.tail = event.InvokeComplete.LogResult;
    }
  }
  print(seen);
} else {
  try {
    const answer = await client.send(new InvokeCommand({ FunctionName: name, InvocationType: call, Payload: payload, LogType: 'Tail' }));
    print({
      status: answer.StatusCode,
      version: answer.ExecutedVersion,
      id: answer.$metadata.requestId,
      error: answer.FunctionError,
      tail: answer.LogResult,
      payload: text(answer.Payload),
    });
  } catch (error) {
    print({ status: error.$metadata?.httpStatusCode, exception: error.name });
  }
}
