// Signs requests with the SDK's signer, sends them as they are, and prints the answers, as
// ../../signature_test.go says.
import { createHash, createHmac } from 'node:crypto';
import { request as send } from 'node:http';
import { text } from 'node:stream/consumers';
import { SignatureV4 } from '@smithy/signature-v4';

const [endpoint, accessKeyId, secretAccessKey] = process.argv.slice(2);
const { hostname, port } = new URL(endpoint);

class Sha256 {
  constructor(key) {
    this.hash = key ? createHmac('sha256', key) : createHash('sha256');
  }
  update(data) {
    this.hash.update(data);
  }
  async digest() {
    return this.hash.digest();
  }
}

const escape = (s) => encodeURIComponent(s).replace(/[!'()*]/g, (c) => '%' + c.charCodeAt(0).toString(16).toUpperCase());

const answers = {};
for (const { name, method, target, headers, body, expires } of JSON.parse(await text(process.stdin))) {
  const signer = new SignatureV4({ credentials: { accessKeyId, secretAccessKey }, region: 'us-east-1', service: 'lambda', sha256: Sha256 });
  const [path, rawQuery] = target.split('?');
  const query = {};
  for (const pair of rawQuery ? rawQuery.split('&') : []) {
    const [key, value] = pair.split('=').map(decodeURIComponent);
    (query[key] ??= []).push(value ?? '');
  }
  const request = { method, protocol: 'http:', hostname, port: Number(port), path, query, headers: { ...headers, host: `${hostname}:${port}` }, body };
  const signed = expires ? await signer.presign(request, { expiresIn: expires }) : await signer.sign(request);
  const pairs = Object.entries(signed.query).flatMap(([key, values]) => [values].flat().map((value) => `${escape(key)}=${escape(value)}`));
  const answer = await new Promise((resolve, reject) => {
    const out = send({ hostname, port, method, path: path + (pairs.length ? '?' + pairs.join('&') : ''), headers: signed.headers }, resolve);
    out.on('error', reject);
    out.end(body);
  });
  answers[name] = await text(answer);
}
console.log(JSON.stringify(answers));
