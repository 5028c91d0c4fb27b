// A function that makes clients of AWS as functions do, when it is loaded. See
// ../../sdk_test.go.
import { S3Client } from "@aws-sdk/client-s3";

const s3 = new S3Client({});

export const handler = async () => {
  const key = process.env.AWS_ACCESS_KEY_ID ? (await s3.config.credentials()).accessKeyId : "";
  return { region: await s3.config.region(), key };
};
