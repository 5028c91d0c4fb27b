package main

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/pflag"

	"github.com/sandboxd/sandboxd/internal/cli"
	"github.com/sandboxd/sandboxd/internal/message"
)

// defaultRegion is the region of a function for which the operator gives none.
const defaultRegion = "us-east-1"

// fromEnvironment is the value of --credentials for the variables of sandboxd's own
// environment. Any other value is a file.
const fromEnvironment = "env"

// maxCredentialsFile is the most bytes of a file of --credentials that are read.
const maxCredentialsFile = 1 << 20

// awsOptions holds the flags for the function's region and credentials.
type awsOptions struct {
	source, profile string              // --credentials, --profile
	given           message.Credentials // set on the command line: no file changes them
}

// addAWSFlags defines the flags for the function's region and credentials.
func (o *options) addAWSFlags(f *pflag.FlagSet) {
	s := &o.settings
	f.Var(cli.Text(&s.region, regionForm, "a region such as us-east-1"), "region", "AWS_REGION of the function, and region in its ARN (default that of --credentials, or "+defaultRegion+")")
	f.StringVar(&o.aws.source, "credentials", "", "where the AWS credentials of the function come from, `env|FILE`: env passes on sandboxd's own AWS_ACCESS_KEY_ID and so on, FILE is a shared credentials file, which is read again when it changes")
	f.StringVar(&o.aws.profile, "profile", "", "`PROFILE` in the file of --credentials (default \"default\")")
	f.Var(cli.Text(&s.credentials.AccessKeyID, anyForm, "text"), "access-key-id", "AWS_ACCESS_KEY_ID of the function")
	f.Var(cli.Text(&s.credentials.SecretAccessKey, anyForm, "text"), "secret-access-key", "AWS_SECRET_ACCESS_KEY of the function; users of the host can read it in the command line, not in the file of --config")
	f.Var(cli.Text(&s.credentials.SessionToken, anyForm, "text"), "session-token", "AWS_SESSION_TOKEN of the function")
}

// completeCredentials reads the credentials from their source, and checks them.
func (o *options) completeCredentials() error {
	s := &o.settings
	switch {
	case o.aws.source == "" && o.aws.profile != "":
		return errors.New("--profile needs --credentials FILE")
	case o.aws.source == fromEnvironment && o.aws.profile != "":
		return errors.New("--profile needs --credentials FILE: the environment has no profiles")
	case o.aws.source != "" && s.credentials != message.Credentials{}:
		return errors.New("--credentials replaces --access-key-id, --secret-access-key and --session-token: leave one of them out")
	case o.aws.source != "":
		var region string
		var err error
		if o.aws.source != fromEnvironment {
			if o.aws.source, err = filepath.Abs(o.aws.source); err != nil {
				return fmt.Errorf("--credentials: %w", err)
			}
		}
		if s.credentials, region, err = o.aws.read(); err != nil {
			return err
		}
		if s.region == "" && region != "" {
			if !regionForm.MatchString(region) {
				return fmt.Errorf("--credentials %s: the region %q must be a region such as us-east-1", o.aws.source, region)
			}
			s.region = region
		}
	}
	s.region = cmp.Or(s.region, defaultRegion)
	return checkCredentials(s.credentials)
}

// checkCredentials returns an error for a part of credentials without the rest.
func checkCredentials(c message.Credentials) error {
	switch {
	case c.AccessKeyID != "" && c.SecretAccessKey == "":
		return errors.New("--access-key-id without --secret-access-key: give both, or neither")
	case c.AccessKeyID == "" && c.SecretAccessKey != "":
		return errors.New("--secret-access-key without --access-key-id: give both, or neither")
	case c.AccessKeyID == "" && c.SessionToken != "":
		return errors.New("--session-token without --access-key-id and --secret-access-key: give all three, or none")
	}
	return nil
}

// read returns the credentials and the region, or "", of the source.
func (a *awsOptions) read() (c message.Credentials, region string, err error) {
	if a.source == fromEnvironment {
		c = message.Credentials{AccessKeyID: os.Getenv("AWS_ACCESS_KEY_ID"), SecretAccessKey: os.Getenv("AWS_SECRET_ACCESS_KEY"), SessionToken: os.Getenv("AWS_SESSION_TOKEN")}
		region = cmp.Or(os.Getenv("AWS_REGION"), os.Getenv("AWS_DEFAULT_REGION"))
		if c.AccessKeyID == "" || c.SecretAccessKey == "" {
			return c, "", errors.New("--credentials env: AWS_ACCESS_KEY_ID or AWS_SECRET_ACCESS_KEY is not set; export both, and have sudo keep them: sudo --preserve-env=AWS_ACCESS_KEY_ID,AWS_SECRET_ACCESS_KEY,AWS_SESSION_TOKEN,AWS_REGION")
		}
		return c, region, nil
	}
	profile := cmp.Or(a.profile, "default")
	keys, err := readProfile(a.source, profile)
	if err != nil {
		return c, "", fmt.Errorf("--credentials %s: %w", a.source, err)
	}
	c = message.Credentials{AccessKeyID: keys["aws_access_key_id"], SecretAccessKey: keys["aws_secret_access_key"], SessionToken: keys["aws_session_token"]}
	if c.AccessKeyID == "" || c.SecretAccessKey == "" {
		return c, "", fmt.Errorf("--credentials %s: the profile %s lacks aws_access_key_id or aws_secret_access_key", a.source, profile)
	}
	return c, keys["region"], nil
}

// readProfile returns the settings of a profile of a shared credentials file.
func readProfile(path, profile string) (map[string]string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, errors.Unwrap(err) // the caller names the file
	}
	if !info.Mode().IsRegular() { // it could block whoever reads it
		return nil, errors.New("is not a regular file")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, errors.Unwrap(err)
	}
	defer f.Close()
	keys := map[string]string{}
	found, inside := false, false
	indent := -1 // of the settings of the section; -1 before the first of them
	lines := bufio.NewScanner(io.LimitReader(f, maxCredentialsFile))
	for first := true; lines.Scan(); first = false {
		text := lines.Text()
		if first {
			text = strings.TrimPrefix(text, "\uFEFF") // editors of Windows write it
		}
		line := strings.TrimSpace(text)
		if line == "" || line[0] == '#' || line[0] == ';' {
			continue
		}
		depth := len(text) - len(strings.TrimLeft(text, " \t"))
		if indent >= 0 && depth > indent {
			continue // part of the setting before
		}
		if section, ok := strings.CutPrefix(line, "["); ok {
			section, _, _ = strings.Cut(section, "]")
			inside = isProfile(strings.TrimSpace(section), profile)
			found = found || inside
			indent = -1
			continue
		}
		indent = depth
		name, value, ok := strings.Cut(line, "=")
		if ok && inside {
			keys[strings.ToLower(strings.TrimSpace(name))] = strings.TrimSpace(withoutComment(value))
		}
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if !found {
		return nil, fmt.Errorf("it has no profile %s; choose another one with --profile", profile)
	}
	return keys, nil
}

// isProfile reports whether a section of a shared file is the profile of that name. Sections
// of ~/.aws/config begin with the word profile, and quote names with spaces.
func isProfile(section, name string) bool {
	if section == name {
		return true
	}
	rest, ok := strings.CutPrefix(section, "profile")
	if !ok || strings.TrimLeft(rest, " \t") == rest {
		return false
	}
	rest = strings.TrimSpace(rest)
	return rest == name || rest == `"`+name+`"` || rest == "'"+name+"'"
}

// withoutComment returns a value up to a comment, which begins with # or ; after white space.
func withoutComment(value string) string {
	for i := 1; i < len(value); i++ {
		if (value[i] == '#' || value[i] == ';') && (value[i-1] == ' ' || value[i-1] == '\t') {
			return value[:i]
		}
	}
	return value
}

// credentialsChange reports whether the credentials come from a file, which may change.
func (o *options) credentialsChange() bool {
	switch {
	case o.aws.source != "":
		return o.aws.source != fromEnvironment
	default:
		return o.config != "" && o.settings.credentials != o.aws.given
	}
}

// renewedCredentials reads the credentials anew from their file. If they come from no file,
// it returns those of the start.
func (o *options) renewedCredentials() (c message.Credentials, err error) {
	switch {
	case !o.credentialsChange():
		return o.settings.credentials, nil
	case o.aws.source != "":
		c, _, err = o.aws.read()
		return c, err
	}
	fresh := newOptions()
	flags, settings := pflag.NewFlagSet("run", pflag.ContinueOnError), pflag.NewFlagSet("settings", pflag.ContinueOnError)
	fresh.addFlags(flags)
	fresh.addSettings(settings)
	if err := applyConfig(o.config, flags, settings); err != nil {
		return c, err
	}
	given := o.aws.given
	c = fresh.settings.credentials
	c = message.Credentials{AccessKeyID: cmp.Or(given.AccessKeyID, c.AccessKeyID),
		SecretAccessKey: cmp.Or(given.SecretAccessKey, c.SecretAccessKey), SessionToken: cmp.Or(given.SessionToken, c.SessionToken)}
	if c == given {
		return c, fmt.Errorf("--config %s has no credentials any more: put them back", o.config)
	}
	if err := checkCredentials(c); err != nil {
		return c, fmt.Errorf("--config %s: %w", o.config, err)
	}
	return c, nil
}
