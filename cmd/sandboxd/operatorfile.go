package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"regexp"

	"github.com/spf13/pflag"

	"github.com/sandboxd/sandboxd/daemon"
	"github.com/sandboxd/sandboxd/internal/message"
)

// namedRole is a role of the configuration file. Of its options those of credentials are used.
type namedRole struct {
	name string // or its ARN
	options
}

// sections are the sections of the configuration file.
func (o *serveOptions) sections() map[string]section {
	return map[string]section{"networks": o.addNetwork, "runtimes": o.addRuntime, "folders": o.addFolder, "roles": o.addRole}
}

// soleSetting is the setting of a section's entry that may be its whole value.
const soleSetting = "path"

// Forms of names.
var (
	folderName = regexp.MustCompile(`^[0-9A-Za-z_-]{1,64}$`)
	roleName   = regexp.MustCompile(`^[0-9A-Za-z+=,.@_-]{1,64}$`)                                   // IAM's
	roleARN    = regexp.MustCompile(`^arn:aws[a-z-]*:iam::\d{12}:role/[0-9A-Za-z+=,.@_/-]{1,512}$`) // the API's
)

// addFolder adds a folder of the configuration file, from which code may come.
func (o *serveOptions) addFolder(name string) (*pflag.FlagSet, error) {
	if !folderName.MatchString(name) {
		return nil, errors.New("the name of a folder has 1 to 64 letters, digits, hyphens and underscores")
	}
	if len(o.folders) == maxFolders {
		return nil, fmt.Errorf("there are more than %d folders; name one that has them all", maxFolders)
	}
	folder := &message.Folder{Name: name}
	o.folders = append(o.folders, folder)
	f := pflag.NewFlagSet(name, pflag.ContinueOnError)
	f.StringVar(&folder.Path, soleSetting, "", "")
	return f, nil
}

// maxFolders bounds the open files of the control process.
const maxFolders = 64

// maxRoles is how many roles there may be: root keeps the credentials of each.
const maxRoles = 1000

// addRole adds a role of the configuration file.
func (o *serveOptions) addRole(name string) (*pflag.FlagSet, error) {
	if !roleName.MatchString(name) && !roleARN.MatchString(name) {
		return nil, errors.New("a role is named by its ARN, such as arn:aws:iam::000000000000:role/reader, or by the part after role/")
	}
	if len(o.roles) == maxRoles {
		return nil, fmt.Errorf("there are more than %d roles", maxRoles)
	}
	r := &namedRole{name: name, options: *newOptions()}
	o.roles = append(o.roles, r)
	all, f := pflag.NewFlagSet(name, pflag.ContinueOnError), pflag.NewFlagSet(name, pflag.ContinueOnError)
	r.addAWSFlags(all)
	for _, setting := range []string{"credentials", "profile", "access-key-id", "secret-access-key", "session-token"} {
		f.AddFlag(all.Lookup(setting))
	}
	return f, nil
}

// arn is the ARN of a role in an account.
func (r *namedRole) arn(account string) string {
	if roleARN.MatchString(r.name) {
		return r.name
	}
	return "arn:aws:iam::" + account + ":role/" + r.name
}

// completeFile checks the folders and roles of the configuration file, and reads the credentials
// of the roles.
func (o *serveOptions) completeFile() error {
	for _, f := range o.folders {
		if !filepath.IsAbs(f.Path) {
			return fmt.Errorf("--config: folder %s: %q is not an absolute path", f.Name, f.Path)
		}
		f.Path = filepath.Clean(f.Path)
	}
	arns := map[string]bool{}
	for _, r := range o.roles {
		err := r.completeCredentials()
		if err == nil && r.settings.credentials == (message.Credentials{}) {
			err = errors.New("has no credentials: add credentials: FILE, or access-key-id and secret-access-key; a function whose role is not named here has none either")
		}
		arn := r.arn(o.settings.accountID)
		if err == nil && arns[arn] {
			err = fmt.Errorf("%s is there twice; remove one of the two", arn)
		}
		if err != nil {
			return fmt.Errorf("--config: role %s: %w", r.name, err)
		}
		arns[arn] = true
	}
	return nil
}

// addFile adds the folders and roles of the configuration file to the daemon's.
func (o *serveOptions) addFile(cfg *daemon.ServeConfig) {
	for _, f := range o.folders {
		cfg.Folders = append(cfg.Folders, *f)
	}
	for _, r := range o.roles {
		cfg.Roles = append(cfg.Roles, daemon.Role{ARN: r.arn(o.settings.accountID), First: r.settings.credentials,
			Read: func() (message.Credentials, error) { return o.readRole(r) }})
	}
	cfg.Worker.Roles = len(cfg.Roles) > 0
}

// readRole reads the credentials of a role anew: from their file, or from that of --config.
func (o *serveOptions) readRole(r *namedRole) (c message.Credentials, err error) {
	if r.aws.source != "" {
		c, _, err = r.aws.read()
		return c, err
	}
	fresh := newServeOptions()
	flags, settings := pflag.NewFlagSet("serve", pflag.ContinueOnError), pflag.NewFlagSet("settings", pflag.ContinueOnError)
	fresh.addServeFlags(flags)
	fresh.addServeSettings(settings)
	if err := applySections(o.config, flags, settings, fresh.sections()); err != nil {
		return c, err
	}
	for _, again := range fresh.roles {
		if again.name != r.name {
			continue
		}
		c = again.settings.credentials
		if err = checkCredentials(c); err == nil && c == (message.Credentials{}) {
			err = errors.New("has no access-key-id any more; put it back, or start sandboxd again")
		}
		if err != nil {
			err = fmt.Errorf("--config %s: role %s: %w", o.config, r.name, err)
		}
		return c, err
	}
	return c, fmt.Errorf("--config %s has no role %s any more; put it back, or start sandboxd again", o.config, r.name)
}
