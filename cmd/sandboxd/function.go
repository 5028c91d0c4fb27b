package main

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/sandboxd/sandboxd/isolation"
	"github.com/sandboxd/sandboxd/rapid"
	"github.com/sandboxd/sandboxd/rapid/telemetry"
	"github.com/sandboxd/sandboxd/rootfs"
)

const (
	mbPerCPU = 1769 // ENV-32
	maxCPUs  = 6    // ENV-32
	maxPIDs  = 1024 // ENV-34
)

// specOf says what a sandbox of the function is made of.
func specOf(o *options, function *rootfs.Function, template string) isolation.Spec {
	spec := isolation.Spec{
		Hostname: "sandbox", // /etc/hosts inside knows it
		Limits: isolation.Limits{
			MemoryBytes: int64(o.memoryMB) << 20,
			CPU:         min(float64(o.memoryMB)/mbPerCPU, maxCPUs),
			PIDs:        maxPIDs,
		},
		Domains: []string{isolation.RuntimeDomain},
		Root:    isolation.Root{Dirs: function.Dirs},
		Tmp:     isolation.Tmp{Template: template},
		Seccomp: o.settings.seccomp,
		Network: networkOf(o),
	}
	if len(function.Extensions) > 0 && !function.ExtensionsDisabled {
		spec.Domains = append(spec.Domains, isolation.ExtensionDomain)
	}
	for _, l := range function.Links {
		spec.Root.Links = append(spec.Root.Links, isolation.Link(l))
	}
	for _, m := range function.Mounts {
		spec.Mounts = append(spec.Mounts, isolation.Mount(m))
	}
	return spec
}

// lifeOf says how a sandbox of the function lives.
func lifeOf(o *options, function *rootfs.Function) rapid.Config {
	settings := rapid.DefaultSettings()
	settings.InitTimeout = o.settings.initTimeout
	settings.Linger = o.linger
	settings.InternalWindow = o.settings.shutdownInternal
	settings.ExternalWindow = o.settings.shutdownExternal
	settings.RuntimeShare = float64(o.settings.runtimeShare) / 100
	settings.BillInit = o.settings.billInit
	settings.Stream.Rate = int64(o.settings.streamRate) << 10
	settings.Descriptors = telemetry.Descriptors(o.logDescriptors)
	c := rapid.Config{
		Function: rapid.Function{
			Name: o.functionName, Version: functionVersion, ARN: functionARN(o), Handler: o.handler,
			Runtime: o.runtime, Region: o.settings.region, AccountID: o.settings.accountID,
			MemoryMB: o.memoryMB, Timeout: o.timeout, Env: o.env,
			LogFormat: telemetry.Format(o.logFormat), LogGroup: "/aws/lambda/" + o.functionName,
			LogLevel: o.settings.appLogLevel, SystemLogLevel: telemetry.Level(o.settings.systemLogLevel),
			Bootstrap:          rapid.Entry{Path: function.Bootstrap, Args: function.BootstrapArgs, Dir: function.WorkingDir},
			Extensions:         function.Extensions,
			ExtensionsDisabled: function.ExtensionsDisabled,
		},
		Settings:    settings,
		Credentials: o.settings.credentials(),
	}
	if o.managed > 0 {
		c.Initialization, c.MaxConcurrency = rapid.Managed, o.managed
		c.Settings.InitTimeout = longInit(o)
	}
	if o.snapStart {
		c.Initialization = rapid.SnapStart
		c.Settings.InitTimeout = longInit(o)
	}
	return c
}

// longInit is the limit of an initialization that no invocation waits for (LC-06).
func longInit(o *options) time.Duration {
	return max(o.settings.initTimeout, 130*time.Second, o.timeout)
}

// credentials are what the configuration file says.
func (s *settings) credentials() rapid.Credentials {
	return rapid.Credentials{AccessKeyID: s.accessKeyID, SecretAccessKey: s.secretAccessKey, SessionToken: s.sessToken}
}

// renewedCredentials are those that the configuration file says now.
func renewedCredentials(o *options) (rapid.Credentials, error) {
	if o.config == "" {
		return o.settings.credentials(), nil
	}
	fresh := newOptions()
	flags, settings := pflag.NewFlagSet("run", pflag.ContinueOnError), pflag.NewFlagSet("settings", pflag.ContinueOnError)
	fresh.addFlags(flags)
	fresh.addSettings(settings)
	if err := applyConfig(o.config, flags, settings); err != nil {
		return rapid.Credentials{}, err
	}
	return fresh.settings.credentials(), nil
}

// functionVersion is the only version that there is.
const functionVersion = "$LATEST"

// functionARN is the function's unqualified ARN.
func functionARN(o *options) string {
	return fmt.Sprintf("arn:aws:lambda:%s:%s:function:%s", o.settings.region, o.settings.accountID, o.functionName)
}

// idPrefix turns a function's name into the first part of sandbox ids, which name
// files and cgroups.
func idPrefix(name string) string {
	name = strings.ReplaceAll(strings.ToLower(name), "_", "-")
	return strings.Trim(name[:min(len(name), 31)], "-")
}

// sandboxID makes a new id: the prefix and eight random hexadecimal digits.
func sandboxID(prefix string) (string, error) {
	var b [4]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", fmt.Errorf("sandbox id: %w", err)
	}
	return strings.TrimPrefix(prefix+"-", "-") + hex.EncodeToString(b[:]), nil
}
