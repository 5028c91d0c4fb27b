package lambda

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
)

// configuration is the FunctionConfiguration of answers. A nil member is left out.
type configuration struct {
	FunctionName    string
	FunctionArn     string
	Runtime         string `json:",omitempty"`
	Role            string
	Handler         string `json:",omitempty"`
	CodeSize        int64
	Description     string
	Timeout         int
	MemorySize      int
	LastModified    string
	CodeSha256      string
	Version         string
	VpcConfig       *vpcResponse `json:",omitempty"`
	Environment     *environment `json:",omitempty"`
	KMSKeyArn       string       `json:",omitempty"`
	TracingConfig   modeResponse
	RevisionId      string
	State           string `json:",omitempty"`
	StateReason     string `json:",omitempty"`
	StateReasonCode string `json:",omitempty"`

	LastUpdateStatus           string `json:",omitempty"`
	LastUpdateStatusReason     string `json:",omitempty"`
	LastUpdateStatusReasonCode string `json:",omitempty"`

	PackageType          string
	ImageConfigResponse  *imageResponse `json:",omitempty"`
	Architectures        []string
	EphemeralStorage     sizeResponse
	SnapStart            snapResponse
	RuntimeVersionConfig *versionResponse `json:",omitempty"`
	LoggingConfig        logResponse
	TenancyConfig        *tenancyResponse `json:",omitempty"`
}

type (
	vpcResponse struct {
		SubnetIds               []string
		SecurityGroupIds        []string
		VpcId                   string
		Ipv6AllowedForDualStack bool
	}
	environment struct {
		Variables map[string]string  `json:",omitzero"`
		Error     *environmentFailed `json:",omitempty"`
	}
	environmentFailed struct{ ErrorCode, Message string }
	modeResponse      struct{ Mode string }
	sizeResponse      struct{ Size int }
	snapResponse      struct{ ApplyOn, OptimizationStatus string }
	versionResponse   struct{ RuntimeVersionArn string }
	tenancyResponse   struct{ TenantIsolationMode string }
	imageResponse     struct{ ImageConfig imageConfig }
	logResponse       struct {
		LogFormat           string
		ApplicationLogLevel string `json:",omitempty"`
		SystemLogLevel      string `json:",omitempty"`
		LogGroup            string
	}
)

// timeForm is that of LastModified.
const timeForm = "2006-01-02T15:04:05.000-0700"

// describe returns the configuration of a function's $LATEST. qualified adds the version to
// the ARN, as answers to requests with a qualifier have it.
func (s *Service) describe(r *record, qualified bool) *configuration {
	d := r.shown()
	c := &configuration{
		FunctionName:    r.Name,
		FunctionArn:     s.arn(r.Name),
		Runtime:         d.Runtime,
		Role:            d.Role,
		Handler:         d.Handler,
		CodeSize:        d.Code.Size,
		Description:     d.Description,
		Timeout:         d.Timeout,
		MemorySize:      d.Memory,
		LastModified:    r.Modified.UTC().Format(timeForm),
		CodeSha256:      d.Code.shownDigest(),
		Version:         latest,
		Environment:     s.shownEnvironment(r.Name, d),
		KMSKeyArn:       d.KMSKey,
		TracingConfig:   modeResponse{d.Tracing},
		RevisionId:      r.RevisionID,
		State:           r.State,
		StateReason:     r.StateReason,
		StateReasonCode: r.StateReasonCode,

		LastUpdateStatus:           r.Update,
		LastUpdateStatusReason:     r.UpdateReason,
		LastUpdateStatusReasonCode: r.UpdateReasonCode,

		PackageType:      d.Package,
		Architectures:    []string{d.Arch},
		EphemeralStorage: sizeResponse{d.Ephemeral},
		SnapStart:        snapResponse{d.SnapStart, "Off"},
		LoggingConfig:    logResponse{d.Log.Format, d.Log.Application, d.Log.System, d.Log.Group},
	}
	if qualified {
		c.FunctionArn += ":" + latest
	}
	if d.VPC != nil {
		c.VpcConfig = &vpcResponse{SubnetIds: append([]string{}, d.VPC.Subnets...), SecurityGroupIds: []string{}, Ipv6AllowedForDualStack: d.VPC.IPv6}
		if len(d.VPC.Subnets) > 0 {
			c.VpcConfig.VpcId = "vpc-" + networkOf(d.VPC.Subnets[0])
		}
	}
	if d.Image != nil {
		c.ImageConfigResponse = &imageResponse{*d.Image}
	}
	if d.Runtime != "" {
		c.RuntimeVersionConfig = &versionResponse{s.runtimeARN(d.Runtime)}
	}
	if d.Tenancy != "" {
		c.TenancyConfig = &tenancyResponse{d.Tenancy}
	}
	return c
}

// listed returns a configuration as lists have it, which leave out what changes by itself.
func (c *configuration) listed() *configuration {
	c.State, c.StateReason, c.StateReasonCode = "", "", ""
	c.LastUpdateStatus, c.LastUpdateStatusReason, c.LastUpdateStatusReasonCode = "", "", ""
	c.RuntimeVersionConfig = nil
	return c
}

// shownDigest returns CodeSha256: of a zip in base64, of an image in hexadecimal.
func (c *code) shownDigest() string {
	digest, err := hex.DecodeString(c.SHA256)
	if c.ImageURI != "" || err != nil {
		return c.SHA256
	}
	return base64.StdEncoding.EncodeToString(digest)
}

// shownEnvironment opens the environment of a definition. One that cannot be opened is shown
// as AWS shows it where a key of its key service is missing.
func (s *Service) shownEnvironment(name string, d *definition) *environment {
	if d.Env == nil {
		return nil
	}
	variables, err := s.openEnvironment(name, d.Env)
	if err != nil {
		s.cfg.OnError(fmt.Errorf("environment of function %s: %w", name, err))
		return &environment{Error: &environmentFailed{"KMSInvalidStateException", "The environment variables cannot be decrypted with the keys that sandboxd has."}}
	}
	return &environment{Variables: variables}
}

// sealEnvironment encrypts variables for the row of a function.
func (s *Service) sealEnvironment(name string, variables map[string]string) ([]byte, error) {
	plain, err := json.Marshal(variables)
	if err != nil {
		return nil, err
	}
	return s.cfg.Sealer.Seal(functionKeys+name, plain)
}

func (s *Service) openEnvironment(name string, sealed []byte) (map[string]string, error) {
	plain, err := s.cfg.Sealer.Open(functionKeys+name, sealed)
	if err != nil {
		return nil, err
	}
	var variables map[string]string
	return variables, json.Unmarshal(plain, &variables)
}

// runtimeARN returns the ARN of a runtime's version. It is the same as long as sandboxd runs.
func (s *Service) runtimeARN(runtime string) string {
	return fmt.Sprintf("arn:aws:lambda:%s::runtime:%x", s.cfg.Region, sha256.Sum256([]byte(runtime)))
}
