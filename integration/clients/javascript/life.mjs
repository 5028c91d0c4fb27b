// Leads a function through its life with @aws-sdk/client-lambda and prints what it saw, as
// ../../serve_test.go says.
import { readFile } from 'node:fs/promises';
import {
  CreateFunctionCommand,
  DeleteFunctionCommand,
  GetFunctionCommand,
  InvokeCommand,
  InvokeWithResponseStreamCommand,
  LambdaClient,
  paginateListFunctions,
  UpdateFunctionCodeCommand,
  UpdateFunctionConfigurationCommand,
  waitUntilFunctionActiveV2,
  waitUntilFunctionUpdatedV2,
} from '@aws-sdk/client-lambda';

const [first, second] = await Promise.all(process.argv.slice(2).map((name) => readFile(name)));
const client = new LambdaClient({ maxAttempts: 1 });
const waiter = { client, maxWaitTime: 300 };
const FunctionName = 'life';
const text = (bytes) => Buffer.from(bytes).toString();
const seen = {};

const refused = async (command) => {
  try {
    await client.send(command);
    return '';
  } catch (error) {
    return error.name;
  }
};
const invoke = async () => {
  const answer = await client.send(new InvokeCommand({ FunctionName, Payload: '{}', LogType: 'Tail' }));
  seen.tail = Buffer.from(answer.LogResult, 'base64').toString();
  return text(answer.Payload);
};

const created = await client.send(
  new CreateFunctionCommand({
    FunctionName,
    Runtime: 'provided.al2023',
    Handler: 'x',
    Role: 'arn:aws:iam::000000000000:role/none',
    Timeout: 60,
    Code: { ZipFile: first },
    Environment: { Variables: { MARK: 'a' } },
  }),
);
seen.created = created.State;
await waitUntilFunctionActiveV2(waiter, { FunctionName });
seen.invoked = await invoke();
seen.dryRun = (await client.send(new InvokeCommand({ FunctionName, InvocationType: 'DryRun' }))).StatusCode;
seen.event = await refused(new InvokeCommand({ FunctionName, InvocationType: 'Event', Payload: '{}' }));
const { EventStream } = await client.send(new InvokeWithResponseStreamCommand({ FunctionName, Payload: '"stream"' }));
seen.streamed = '';
for await (const event of EventStream) {
  if (event.PayloadChunk) seen.streamed += text(event.PayloadChunk.Payload);
}

const updated = await client.send(new UpdateFunctionCodeCommand({ FunctionName, ZipFile: second }));
await waitUntilFunctionUpdatedV2(waiter, { FunctionName });
seen.newCode = await invoke();
await client.send(new UpdateFunctionConfigurationCommand({ FunctionName, Description: 'changed', Environment: { Variables: { MARK: 'b' } } }));
await waitUntilFunctionUpdatedV2(waiter, { FunctionName });
seen.newConfiguration = await invoke();

const { Configuration, Code } = await client.send(new GetFunctionCommand({ FunctionName }));
seen.description = Configuration.Description;
seen.revisions = new Set([created.RevisionId, updated.RevisionId, Configuration.RevisionId]).size;
seen.downloaded = Buffer.from(await (await fetch(Code.Location)).arrayBuffer()).equals(second);
seen.listed = [];
for await (const page of paginateListFunctions({ client }, {})) {
  seen.listed.push(...page.Functions.map((f) => f.FunctionName));
}
await client.send(new DeleteFunctionCommand({ FunctionName }));
seen.deleted = await refused(new GetFunctionCommand({ FunctionName }));
console.log(JSON.stringify(seen));
