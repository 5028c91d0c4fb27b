package rapid

import (
	"fmt"
	"runtime"
)

// The statuses that shells give for a command that they cannot run (POSIX), and for what they
// cannot understand.
const (
	statusSyntax        = 2
	statusNotExecutable = 126
	statusNotFound      = 127
)

// hint tells the operator the likely cause of an exit whose status says more than that the
// process failed. What the caller gets stays as on Lambda.
func (s *Sandbox) hint(p *process) {
	if s.cfg.OnHint == nil || p.handle.Exit().Signal != 0 {
		return
	}
	f := &s.cfg.Function
	program, wrapper := f.Bootstrap.Path, f.Env["AWS_LAMBDA_EXEC_WRAPPER"]
	if p.agent != nil {
		program, wrapper = extensionsDir+p.agent.Name, ""
	}
	if text := statusHint(program, wrapper, p.handle.Exit().Code); text != "" {
		s.cfg.OnHint(text)
	}
}

// statusHint returns the likely cause of an exit status, or "" if there is none. wrapper is
// the value of AWS_LAMBDA_EXEC_WRAPPER for a runtime (ENV-27).
func statusHint(program, wrapper string, status int) string {
	cause := ""
	switch status {
	case statusSyntax:
		return fmt.Sprintf("%s ended with status 2: shells do that for a syntax error, Python for a file or an option that it cannot use, Go for a panic; "+
			"the lines before this one say more", program)
	case statusNotExecutable:
		cause = "a file that it runs is not executable in the sandbox: others have no permission, it is a folder, or it is built for another system; " +
			"chmod 755 it, or build it for linux/" + runtime.GOARCH
	case statusNotFound:
		cause = "a command, the interpreter of a script or a shared library that it needs is not in the sandbox; " +
			"put it into the package or a layer, install it below /usr of the base, or remove Windows line ends with dos2unix"
	default:
		return ""
	}
	if wrapper != "" {
		cause += fmt.Sprintf("; see first whether AWS_LAMBDA_EXEC_WRAPPER, which is %q, names an executable file", wrapper)
	}
	return fmt.Sprintf("%s ended with status %d: %s", program, status, cause)
}
