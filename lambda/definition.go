package lambda

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/sandboxd/sandboxd/function"
)

// Package types.
const (
	zipPackage   = "Zip"
	imagePackage = "Image"
)

// runtimes are the runtimes that AWS's message lists, in its order, as recorded on 2025-11-25
// by LocalStack's test_create_lambda_exceptions (Apache-2.0). Those that are not in the list
// are names that AWS no longer takes, or takes only in some regions.
var runtimes = []string{
	"nodejs20.x", "python3.14", "provided.al2023", "python3.12", "python3.13", "nodejs24.x", "nodejs22.x", "java25",
	"python3.10", "python3.11", "java21", "ruby3.3", "ruby3.4", "ruby3.2", "python3.8", "python3.9", "java17",
	"nodejs16.x", "dotnet10", "dotnet8", "java11", "dotnet6", "nodejs18.x", "provided.al2", "java8.al2",
}

// newer are runtimes of the model that came after that list.
var newer = []string{"nodejs26.x", "python3.15", "ruby4.0", "java8.al2023", "java11.al2023", "java17.al2023", "custom"}

// newDefinition returns what a function has that its owner has set nothing of.
func (s *Service) newDefinition(name string) *definition {
	f := function.Defaults()
	return &definition{
		Timeout: int(f.Timeout / time.Second), Memory: f.MemoryMB, Ephemeral: f.EphemeralMB,
		Package: zipPackage, Arch: s.cfg.Architecture, Tracing: "PassThrough", SnapStart: "None",
		Log: logging{Format: f.LogFormat, Group: "/aws/lambda/" + name},
	}
}

// change applies the members of a request that are there to a definition of a function.
func (s *Service) change(name string, d *definition, in object) error {
	if err := unsupportedMembers(in); err != nil {
		return err
	}
	for member, to := range map[string]*string{
		"Role": &d.Role, "Handler": &d.Handler, "Description": &d.Description, "KMSKeyArn": &d.KMSKey, "Runtime": &d.Runtime,
	} {
		if in.has(member) {
			*to = in.text(member)
		}
	}
	for member, to := range map[string]*int{"Timeout": &d.Timeout, "MemorySize": &d.Memory} {
		if in.has(member) {
			*to = in.number(member)
		}
	}
	if e := in.object("EphemeralStorage"); e.has("Size") {
		d.Ephemeral = e.number("Size")
	}
	if t := in.object("TracingConfig"); t.has("Mode") {
		d.Tracing = t.text("Mode")
	}
	if t := in.object("SnapStart"); t.has("ApplyOn") {
		d.SnapStart = t.text("ApplyOn")
	}
	if t := in.object("TenancyConfig"); t.has("TenantIsolationMode") {
		d.Tenancy = t.text("TenantIsolationMode")
	}
	if a := in.list("Architectures"); len(a) == 1 {
		d.Arch = a[0]
	}
	if i := in.object("ImageConfig"); i != nil {
		d.Image = &imageConfig{EntryPoint: i.list("EntryPoint"), Command: i.list("Command"), WorkingDirectory: i.text("WorkingDirectory")}
		if len(d.Image.EntryPoint) == 0 && len(d.Image.Command) == 0 && d.Image.WorkingDirectory == "" {
			d.Image = nil
		}
	}
	d.Log.change(in.object("LoggingConfig"))
	if in.has("VpcConfig") {
		if err := s.changeVPC(d, in.object("VpcConfig")); err != nil {
			return err
		}
	}
	if in.has("Environment") {
		if err := s.changeEnvironment(name, d, in.object("Environment").mapping("Variables")); err != nil {
			return err
		}
	}
	return s.check(name, d)
}

// unsupported are the members that sandboxd refuses unless they are empty, and what to do
// instead.
var unsupported = map[string]string{
	"Publish":                "",
	"PublishTo":              "",
	"DeadLetterConfig":       "",
	"Layers":                 "",
	"FileSystemConfigs":      "",
	"CodeSigningConfigArn":   "",
	"CapacityProviderConfig": "",
	"DurableConfig":          "",
	"RuntimeConfig":          "",
	"AcceleratorConfig":      "",
	"SourceKMSKeyArn":        "",
	"S3ObjectVersion":        "; send the code as ZipFile",
	"S3ObjectStorageMode":    "; send the code as ZipFile",
}

// unsupportedMembers returns the refusal of a request that has one of them.
func unsupportedMembers(in object) error {
	for _, layer := range in.list("Layers") {
		return badParameter("Layer version %s does not exist.", layer)
	}
	for _, member := range slices.Sorted(maps.Keys(unsupported)) {
		if !empty(in[member]) {
			instead := unsupported[member]
			if instead == "" {
				instead = "; leave it out"
			}
			return badParameter("sandboxd does not support %s%s", member, instead)
		}
	}
	return nil
}

// empty reports whether a value says no more than one that is not there.
func empty(v any) bool {
	switch v := v.(type) {
	case nil:
		return true
	case string:
		return v == ""
	case bool:
		return !v
	case []any:
		return len(v) == 0
	case mapping:
		return len(v) == 0
	case object:
		for _, member := range v {
			if !empty(member) {
				return false
			}
		}
		return true
	}
	return false
}

// change applies a LoggingConfig. JSON has levels, and plain text has none.
func (l *logging) change(in object) {
	for member, to := range map[string]*string{
		"LogFormat": &l.Format, "ApplicationLogLevel": &l.Application, "SystemLogLevel": &l.System, "LogGroup": &l.Group,
	} {
		if in.has(member) {
			*to = in.text(member)
		}
	}
	if l.Format != "JSON" {
		l.Application, l.System = "", ""
		return
	}
	def(&l.Application, "INFO")
	def(&l.System, "INFO")
}

// subnetPrefix begins the ids of subnets, which choose networks of the operator by name.
const subnetPrefix = "subnet-"

func networkOf(subnet string) string { return strings.TrimPrefix(subnet, subnetPrefix) }

// changeVPC takes the networks of a VpcConfig.
func (s *Service) changeVPC(d *definition, in object) error {
	if groups := in.list("SecurityGroupIds"); len(groups) > 0 {
		return badParameter("Error occurred while DescribeSecurityGroups. EC2 Error Code: InvalidGroup.NotFound. EC2 Error Message: The security group '%s' does not exist", groups[0])
	}
	subnets := in.list("SubnetIds")
	for _, subnet := range subnets {
		if slices.Contains(s.cfg.Networks, networkOf(subnet)) {
			continue
		}
		there := "this host has no networks for functions; add one to the configuration file of sandboxd serve"
		if len(s.cfg.Networks) > 0 {
			there = "use one of " + subnetPrefix + strings.Join(s.cfg.Networks, ", "+subnetPrefix) +
				", or add the network " + networkOf(subnet) + " to the configuration file of sandboxd serve"
		}
		return badParameter("Error occurred while DescribeSubnets. EC2 Error Code: InvalidSubnetID.NotFound. EC2 Error Message: The subnet ID '%s' does not exist; %s", subnet, there)
	}
	if len(subnets) > 1 {
		return badParameter("VpcConfig has %d subnets: a function has one network; name one", len(subnets))
	}
	d.VPC = &vpc{Subnets: subnets, IPv6: in.flag("Ipv6AllowedForDualStack")}
	return nil
}

// maxEnvironment is the most bytes of a function's variables as JSON, as on Lambda.
const maxEnvironment = 4096

// changeEnvironment seals a function's variables. Its refusals have AWS's words, and names
// where AWS has values only if the client is the one who sent them.
func (s *Service) changeEnvironment(name string, d *definition, in mapping) error {
	const unable = "Lambda was unable to configure your environment variables because the environment variables you have provided "
	variables := in.strings()
	var reserved []string
	for _, p := range in {
		if function.Reserved(p.key) {
			reserved = append(reserved, p.key)
		}
	}
	if len(reserved) > 0 {
		return badParameter(unable+"contains reserved keys that are currently not supported for modification. Reserved keys used in this request: %s", strings.Join(reserved, ", "))
	}
	if measured := measure(in); len(measured) > maxEnvironment {
		return badParameter(unable+"exceeded the 4KB limit. String measured: %s", measured)
	}
	if err := function.CheckEnv(variables); err != nil {
		return badParameter(unable+"are not valid: %s", err)
	}
	sealed, err := s.sealEnvironment(name, variables)
	d.Env = sealed
	return err
}

// measure returns the variables as JSON in the order of the request.
func measure(in mapping) string {
	var b bytes.Buffer
	quote := func(s string) {
		var one bytes.Buffer
		enc := json.NewEncoder(&one)
		enc.SetEscapeHTML(false)
		_ = enc.Encode(s) // a string
		b.Write(bytes.TrimSuffix(one.Bytes(), []byte("\n")))
	}
	b.WriteByte('{')
	for i, p := range in {
		if i > 0 {
			b.WriteByte(',')
		}
		quote(p.key)
		b.WriteByte(':')
		value, _ := p.value.(string)
		quote(value)
	}
	b.WriteByte('}')
	return b.String()
}

// check checks what the model does not: a definition as a whole, and against this host.
func (s *Service) check(name string, d *definition) error {
	switch {
	case d.Package == zipPackage && (d.Runtime == "" || d.Handler == ""):
		return badParameter("Runtime and Handler are mandatory parameters for functions created with deployment packages.")
	case d.Package == imagePackage && (d.Runtime != "" || d.Handler != ""):
		return badParameter("Please don't provide Handler or Runtime or Layer when the intended function PackageType is Image.")
	case d.Package == zipPackage && d.Image != nil:
		return badParameter("Please don't provide ImageConfig when the intended function PackageType is Zip.")
	case d.Memory > function.MaxMemoryMB:
		return badParameter("'MemorySize' value failed to satisfy constraint: Member must have value less than or equal to %d", function.MaxMemoryMB)
	case d.Timeout > int(function.MaxTimeout/time.Second):
		return tooHigh(d.Timeout, "timeout", int(function.MaxTimeout/time.Second))
	case d.Ephemeral > function.MaxEphemeralMB:
		return tooHigh(d.Ephemeral, "ephemeralStorage.size", function.MaxEphemeralMB)
	case d.Arch != s.cfg.Architecture:
		return badParameter("This host runs functions for %s, not for %s: build the code for it, and set Architectures to [%s]", s.cfg.Architecture, d.Arch, s.cfg.Architecture)
	}
	if d.Package == zipPackage {
		if err := s.checkRuntime(d.Runtime); err != nil {
			return err
		}
	}
	settings := s.settings(name, d)
	if err := settings.Validate(); err != nil {
		if bad, ok := errors.AsType[*function.Error](err); ok {
			return badParameter("%s", bad.Text(memberOf))
		}
		return err
	}
	return nil
}

// tooHigh is the violation of a limit that is lower here than in the model.
func tooHigh(value int, at string, limit int) error {
	fault := violation(fmt.Sprintf("'%d'", value), true, at, fmt.Sprintf("Member must have value less than or equal to %d", limit))
	return &Error{Status: http.StatusBadRequest, Type: "ValidationException", Message: violations([]string{fault})}
}

// memberOf returns the member of the API for a setting.
func memberOf(setting string) string {
	names := map[string]string{
		"function-name": "FunctionName", "memory": "MemorySize", "ephemeral-storage": "EphemeralStorage", "timeout": "Timeout",
		"log-format": "LogFormat", "application-log-level": "ApplicationLogLevel", "system-log-level": "SystemLogLevel",
		"snap-start": "SnapStart", "tenant-isolation": "TenancyConfig", "env": "Environment",
	}
	if name, ok := names[setting]; ok {
		return name
	}
	return setting
}

// checkRuntime returns the refusal of a runtime that the host does not have.
func (s *Service) checkRuntime(runtime string) error {
	switch {
	case slices.Contains(s.cfg.Runtimes, runtime):
		return nil
	case slices.Contains(runtimes, runtime) || slices.Contains(newer, runtime):
		there := "it has none"
		if len(s.cfg.Runtimes) > 0 {
			there = "it has " + strings.Join(s.cfg.Runtimes, ", ")
		}
		return badParameter("This host does not have the runtime %s: %s. Choose another, or add it to the configuration file of sandboxd serve.", runtime, there)
	case slices.Contains(api().shape("Runtime").known, runtime):
		return badParameter("The runtime parameter of %s is no longer supported for creating or updating AWS Lambda functions. We recommend you use a supported runtime while creating or updating functions.", runtime)
	}
	return badParameter("Value %s at 'runtime' failed to satisfy constraint: Member must satisfy enum value set: [%s] or be a valid ARN", runtime, strings.Join(runtimes, ", "))
}

// settings returns a definition as settings of a function, without its variables.
func (s *Service) settings(name string, d *definition) function.Settings {
	f := function.Defaults()
	f.Name, f.Handler, f.Runtime, f.Image = name, d.Handler, d.Runtime, d.Package == imagePackage
	f.MemoryMB, f.EphemeralMB, f.Timeout = d.Memory, d.Ephemeral, time.Duration(d.Timeout)*time.Second
	f.TenantIsolation = d.Tenancy != ""
	f.LogFormat, f.ApplicationLogLevel = d.Log.Format, d.Log.Application
	if d.Log.System != "" {
		f.SystemLogLevel = d.Log.System
	}
	if d.VPC != nil && len(d.VPC.Subnets) > 0 {
		f.Network = networkOf(d.VPC.Subnets[0])
	}
	return f
}
