package lambda

import "errors"

// localBucket is the bucket by whose name a client says that the key is a path of this host. It is
// the name that other servers of this API have for it.
const localBucket = "hot-reload"

// takeLocal takes the code that a request names in a bucket: that of a folder of this host, as it
// is now.
func (s *Service) takeLocal(c *call, in object) error {
	bucket, key := in.text("S3Bucket"), in.text("S3Key")
	switch {
	case bucket == "" && key == "":
		return nil
	case bucket != localBucket:
		return badParameter("sandboxd does not support S3Bucket; send the code as ZipFile, or name a folder of this host as the S3Key of the bucket %s", localBucket)
	case key == "":
		return badParameter("S3Key is missing: it is the path of a folder of this host, below one that the operator has named")
	case c.upload != nil:
		return badParameter("Please do not provide other FunctionCode parameters when providing a ZipFile.")
	case s.cfg.Local == nil:
		return badParameter("this server takes no code from folders; send it as ZipFile")
	}
	content, err := s.cfg.Local(c.Context(), key)
	if err != nil {
		return err
	}
	defer content.Close()
	c.upload, err = s.takeUpload(c.Context(), content, s.cfg.Limits.Local)
	if errors.Is(err, errZip) {
		return badParameter("Unzipped size must be smaller than %d bytes", s.cfg.Limits.Local)
	}
	return err
}
