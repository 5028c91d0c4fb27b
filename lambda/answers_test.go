package lambda

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
)

// Patterns of the model, as messages quote them.
const (
	namePrefix    = `(arn:(aws[a-zA-Z-]*)?:lambda:)?((eusc-)?[a-z]{2}((-gov)|(-iso([a-z]?)))?-[a-z]+-\d{1}:)?(\d{12}:)?(function:)?`
	createPattern = namePrefix + `([a-zA-Z0-9-_]+)(:(\$LATEST|[a-zA-Z0-9-_]+))?`
	namedPattern  = namePrefix + `([a-zA-Z0-9-_\.]+)(:(\$LATEST(\.PUBLISHED)?|[a-zA-Z0-9-_]+))?`
	qualPattern   = `\$(LATEST(\.PUBLISHED)?)|[a-zA-Z0-9-_$]+`
	rolePattern   = `arn:(aws[a-zA-Z-]*)?:iam::\d{12}:role/?[a-zA-Z_0-9+=,.@\-_/]+`
	layerPattern  = `(arn:(aws[a-zA-Z-]*)?:lambda:(eusc-)?[a-z]{2}((-gov)|(-iso([a-z]?)))?-[a-z]+-\d{1}:\d{12}:layer:[a-zA-Z0-9-_]+:[0-9]+)|(arn:[a-zA-Z0-9-]+:lambda:::awslayer:[a-zA-Z0-9-_]+)`
)

const ownARN = "arn:aws:lambda:" + testRegion + ":" + testAccount + ":function:"

// named returns the target of a request about a function, with a query if it is not "".
func named(name, suffix, query string) string {
	target := "/2015-03-31/functions/" + url.PathEscape(name) + suffix
	if query != "" {
		target += "?" + query
	}
	return target
}

// one is the message of one violation, of a value that is shown.
func one(value, at, constraint string) string {
	return "1 validation error detected: Value '" + value + "' at '" + at + "' failed to satisfy constraint: Member must " + constraint
}

// with returns a request that creates a function, with a member set, or removed if it is nil.
func with(member string, value any) j {
	r := newFunction("f")
	if r[member] = value; value == nil {
		delete(r, member)
	}
	return r
}

func matching(pattern string) string { return "satisfy regular expression pattern: " + pattern }

// A negative is a request that is refused, and its answer.
type negative struct {
	method, target string
	body           any
	status         int
	kind, message  string
}

const (
	invalid    = "ValidationException"
	wrongValue = "InvalidParameterValueException"
	missing    = "ResourceNotFoundException"
	badJSON    = "SerializationException"
)

// Names, qualifiers and ARNs in every wrong form.
func wrongNames() []negative {
	var list []negative
	for name, message := range map[string]string{
		"my-function!":               "",
		"*":                          "",
		"invalid-account:function:f": "",
		"arn:aws:lambda:invalid-region:1:function":                             "",
		"arn:aws:ec2:eu-west-1:111111111111:instance:i-1234567890abcdef0":      "",
		"arn:aws:lambda:eu-west-1:111111111111:function:f:1:2":                 "",
		"function:f:$LATEST:extra":                                             "",
		"arn:aws:lambda::111111111111:function:f":                              "",
		"arn:aws:lambda:eu-west-1::function:f":                                 "",
		"arn:aws:lambda:eu-west-1:111111111111:function:f:$LATES":              "",
		"arn:aws:lambda:eu-west-1:123400000000@function:f":                     "",
		"arn:aws:lambda:invalid-region:1:function:" + strings.Repeat("a", 170): "",
		"arn:aws:lambda:us-east-1:111111111111:function:f":                     "Functions from 'us-east-1' are not reachable in this region ('eu-west-1')",
		"us-east-1:111111111111:function:f":                                    "Functions from 'us-east-1' are not reachable in this region ('eu-west-1')",
		strings.Repeat("a", 65):                                                "Function not found: " + ownARN + strings.Repeat("a", 65),
		"arn:aws:lambda:eu-west-1:111111111111:function":                       "Function not found: " + ownARN + "function",
		"none":                       "Function not found: " + ownARN + "none",
		"111111111111:function:none": "Function not found: " + ownARN + "none",
		"function:none":              "Function not found: " + ownARN + "none",
		"a.b":                        "Function not found: " + ownARN + "a.b",
	} {
		for method, suffix := range map[string]string{"GET": "", "GET ": "/configuration", "DELETE": ""} {
			n := negative{strings.TrimSpace(method), named(name, suffix, ""), nil, 404, missing, message}
			if message == "" {
				n.status, n.kind, n.message = 400, invalid, one(name, "functionName", matching(namedPattern))
			}
			list = append(list, n)
		}
	}
	return list
}

// The answers to requests that are refused. Where AWS's answer is recorded, it is this one.
func negatives() []negative {
	const create = "/2015-03-31/functions"
	config := named("there", "/configuration", "")
	code := named("there", "/code", "")
	long := strings.Repeat("a", 129)
	longARN := ownARN + strings.Repeat("a", 141-len(ownARN))
	tags := j{}
	for i := range 51 {
		tags[strings.Repeat("k", i+1)] = "v"
	}
	return append(wrongNames(), []negative{
		// Qualifiers.
		{"GET", named("f", "", "Qualifier=invalid%21"), nil, 400, invalid, one("invalid!", "qualifier", matching(qualPattern))},
		{"DELETE", named("f", "", "Qualifier="+long), nil, 400, invalid, one(long, "qualifier", "have length less than or equal to 128")},
		{"GET", named("my!", "", "Qualifier="+long), nil, 400, invalid, "2 validation errors detected: Value '" + long + "' at 'qualifier' failed to satisfy constraint: Member must have length less than or equal to 128; Value 'my!' at 'functionName' failed to satisfy constraint: Member must satisfy regular expression pattern: " + namedPattern},
		{"GET", named(ownARN+"there:$LATEST", "", "Qualifier=1"), nil, 400, wrongValue, "The derived qualifier from the function name does not match the specified qualifier."},
		{"DELETE", named("there:1", "", "Qualifier=2"), nil, 400, wrongValue, "The derived qualifier from the function name does not match the specified qualifier."},
		{"GET", named(ownARN+"none:$LATEST", "", "Qualifier=$LATEST"), nil, 404, missing, "Function not found: " + ownARN + "none:$LATEST"},
		{"GET", named("none", "", "Qualifier=$latest"), nil, 404, missing, "Function not found: " + ownARN + "none:$latest"},
		{"GET", named("there", "", "Qualifier=1221"), nil, 404, missing, "Function not found: " + ownARN + "there:1221"},
		{"GET", named("there", "/configuration", "Qualifier=live"), nil, 404, missing, "Function not found: " + ownARN + "there:live"},
		{"DELETE", named("none", "", "Qualifier=$latest"), nil, 404, missing, "Function not found: " + ownARN + "none"},
		{"DELETE", named("none", "", "Qualifier=1233"), nil, 404, missing, "Function not found: " + ownARN + "none"},
		{"DELETE", named("there", "", "Qualifier=$LATEST"), nil, 400, wrongValue, "$LATEST version cannot be deleted without deleting the function."},
		{"DELETE", named("there", "", "Qualifier=live"), nil, 400, wrongValue, "Deletion of aliases is not currently supported."},
		{"PUT", named("none", "/configuration", ""), j{}, 404, missing, "Function not found: " + ownARN + "none"},
		{"PUT", named("none", "/code", ""), j{"ZipFile": []byte("x")}, 404, missing, "Function not found: " + ownARN + "none"},
		{"PUT", named("a.b", "/code", ""), j{"ZipFile": []byte("x")}, 400, invalid, one("a.b", "functionName", matching(createPattern))},

		// New functions.
		{"POST", create, j{}, 400, invalid, "3 validation errors detected: Value null at 'functionName' failed to satisfy constraint: Member must not be null; Value null at 'role' failed to satisfy constraint: Member must not be null; Value null at 'code' failed to satisfy constraint: Member must not be null"},
		{"POST", create, "", 400, invalid, "3 validation errors detected: Value null at 'functionName' failed to satisfy constraint: Member must not be null; Value null at 'role' failed to satisfy constraint: Member must not be null; Value null at 'code' failed to satisfy constraint: Member must not be null"},
		{"POST", create, with("FunctionName", "invalid:function:name"), 400, invalid, one("invalid:function:name", "functionName", matching(createPattern))},
		{"POST", create, with("FunctionName", strings.Repeat("a", 65)), 400, wrongValue, one(strings.Repeat("a", 65), "functionName", "have length less than or equal to 64")},
		{"POST", create, with("FunctionName", longARN), 400, invalid, one(longARN, "functionName", "have length less than or equal to 140")},
		{"POST", create, with("FunctionName", "arn:aws:lambda:ap-southeast-1:111111111111:function:f"), 404, missing, "Functions from 'ap-southeast-1' are not reachable in this region ('eu-west-1')"},
		{"POST", create, with("FunctionName", "arn:aws:lambda:eu-west-1:123456789012:function:f"), 403, "AccessDeniedException", ""},
		{"POST", create, with("FunctionName", "there"), 409, "ResourceConflictException", "Function already exist: there"},
		{"POST", create, with("Role", "r1"), 400, invalid, one("r1", "role", matching(rolePattern))},
		{"POST", create, with("Runtime", "non-existent-runtime"), 400, wrongValue, "Value non-existent-runtime at 'runtime' failed to satisfy constraint: Member must satisfy enum value set: [nodejs20.x, python3.14, provided.al2023, python3.12, python3.13, nodejs24.x, nodejs22.x, java25, python3.10, python3.11, java21, ruby3.3, ruby3.4, ruby3.2, python3.8, python3.9, java17, nodejs16.x, dotnet10, dotnet8, java11, dotnet6, nodejs18.x, provided.al2, java8.al2] or be a valid ARN"},
		{"POST", create, with("Runtime", "python3.7"), 400, wrongValue, "The runtime parameter of python3.7 is no longer supported for creating or updating AWS Lambda functions. We recommend you use a supported runtime while creating or updating functions."},
		{"POST", create, with("Runtime", "nodejs26.x"), 400, wrongValue, "This host does not have the runtime nodejs26.x: it has " + strings.Join(runtimes, ", ") + ". Choose another, or add it to the configuration file of sandboxd serve."},
		{"POST", create, with("Runtime", nil), 400, wrongValue, "Runtime and Handler are mandatory parameters for functions created with deployment packages."},
		{"POST", create, with("Handler", nil), 400, wrongValue, "Runtime and Handler are mandatory parameters for functions created with deployment packages."},
		{"POST", create, with("Architectures", []string{"x86_64", "arm64"}), 400, invalid, one("[x86_64, arm64]", "architectures", "have length less than or equal to 1")},
		{"POST", create, with("Architectures", []string{}), 400, invalid, one("[]", "architectures", "have length greater than or equal to 1")},
		{"POST", create, with("Architectures", []string{"X86_64"}), 400, invalid, one("[X86_64]", "architectures", "satisfy constraint: [Member must satisfy enum value set: [x86_64, arm64], Member must not be null]")},
		{"POST", create, with("Architectures", []any{nil}), 400, invalid, one("[null]", "architectures", "satisfy constraint: [Member must satisfy enum value set: [x86_64, arm64], Member must not be null]")},
		{"POST", create, with("Architectures", []string{"arm64"}), 400, wrongValue, "This host runs functions for x86_64, not for arm64: build the code for it, and set Architectures to [x86_64]"},
		{"POST", create, with("Code", j{}), 400, wrongValue, "Please provide a source for function code."},
		{"POST", create, with("Code", j{"ZipFile": ""}), 400, wrongValue, "Uploaded file must be a non-empty zip"},
		{"POST", create, with("Code", j{"ZipFile": []byte("not a zip")}), 400, wrongValue, "Could not unzip uploaded file. Please check your file, then try to upload again."},
		{"POST", create, with("Code", j{"ZipFile": []byte("large")}), 400, wrongValue, "Unzipped size must be smaller than 262144000 bytes"},
		{"POST", create, with("Code", j{"ZipFile": "!"}), 400, badJSON, "The value of 'Code.ZipFile' is not valid base64"},
		{"POST", create, with("Code", j{"S3Bucket": "bucket", "S3Key": "key"}), 400, wrongValue, "sandboxd does not support S3Bucket; send the code as ZipFile, or name a folder of this host as the S3Key of the bucket hot-reload"},
		{"POST", create, with("SnapStart", j{"ApplyOn": "invalidOption"}), 400, invalid, one("invalidOption", "snapStart.applyOn", "satisfy enum value set: [PublishedVersions, None]")},
		{"POST", create, with("Timeout", 0), 400, invalid, one("0", "timeout", "have value greater than or equal to 1")},
		{"POST", create, with("Timeout", 901), 400, invalid, one("901", "timeout", "have value less than or equal to 900")},
		{"POST", create, with("Timeout", 5401), 400, invalid, one("5401", "timeout", "have value less than or equal to 5400")},
		{"POST", create, with("MemorySize", 127), 400, invalid, one("127", "memorySize", "have value greater than or equal to 128")},
		{"POST", create, with("MemorySize", 10241), 400, wrongValue, "'MemorySize' value failed to satisfy constraint: Member must have value less than or equal to 10240"},
		{"POST", create, with("EphemeralStorage", j{"Size": 511}), 400, invalid, one("511", "ephemeralStorage.size", "have value greater than or equal to 512")},
		{"POST", create, with("EphemeralStorage", j{"Size": 10241}), 400, invalid, one("10241", "ephemeralStorage.size", "have value less than or equal to 10240")},
		{"POST", create, with("EphemeralStorage", j{}), 400, invalid, "1 validation error detected: Value null at 'ephemeralStorage.size' failed to satisfy constraint: Member must not be null"},
		{"POST", create, with("Description", strings.Repeat("é", 257)), 400, invalid, one(strings.Repeat("é", 257), "description", "have length less than or equal to 256")},
		{"POST", create, with("Layers", []string{"arn:aws:lambda:eu-west-1:111111111111:layer:none:1"}), 400, wrongValue, "Layer version arn:aws:lambda:eu-west-1:111111111111:layer:none:1 does not exist."},
		{"POST", create, with("Layers", []string{"x"}), 400, invalid, one("[x]", "layers", "satisfy constraint: [Member must have length less than or equal to 2048, Member must have length greater than or equal to 1, Member must satisfy regular expression pattern: "+layerPattern+", Member must not be null]")},
		{"POST", create, with("Publish", true), 400, wrongValue, "sandboxd does not support Publish; leave it out"},
		{"POST", create, with("DeadLetterConfig", j{"TargetArn": "arn:aws:sqs:eu-west-1:111111111111:q"}), 400, wrongValue, "sandboxd does not support DeadLetterConfig; leave it out"},
		{"POST", create, with("FileSystemConfigs", []j{{}}), 400, invalid, "2 validation errors detected: Value null at 'fileSystemConfigs.1.member.arn' failed to satisfy constraint: Member must not be null; Value null at 'fileSystemConfigs.1.member.localMountPath' failed to satisfy constraint: Member must not be null"},
		{"POST", create, with("Tags", tags), 400, wrongValue, "Number of tags exceeds resource tag limit."},
		{"POST", create, with("ImageConfig", j{"Command": []string{"a"}}), 400, wrongValue, "Please don't provide ImageConfig when the intended function PackageType is Zip."},
		{"POST", create, `{"FunctionName":7}`, 400, badJSON, "NUMBER_VALUE can not be converted to a String"},
		{"POST", create, `{"FunctionName":"f"`, 400, badJSON, "Unexpected end-of-input in the request body"},

		// Networks.
		{"POST", create, with("VpcConfig", j{"SubnetIds": []string{"subnet-lan"}, "SecurityGroupIds": []string{"sg-1"}}), 400, wrongValue, "Error occurred while DescribeSecurityGroups. EC2 Error Code: InvalidGroup.NotFound. EC2 Error Message: The security group 'sg-1' does not exist"},
		{"POST", create, with("VpcConfig", j{"SubnetIds": []string{"bad-format"}}), 400, invalid, one("[bad-format]", "vpcConfig.subnetIds", "satisfy constraint: [Member must have length less than or equal to 1024, Member must have length greater than or equal to 0, Member must satisfy regular expression pattern: subnet-[0-9a-z]*]")},
		{"POST", create, with("VpcConfig", j{"SecurityGroupIds": []string{"bad-format"}}), 400, invalid, one("[bad-format]", "vpcConfig.securityGroupIds", "satisfy constraint: [Member must have length less than or equal to 1024, Member must have length greater than or equal to 0, Member must satisfy regular expression pattern: sg-[0-9a-zA-Z]*]")},
		{"POST", create, with("VpcConfig", j{"SubnetIds": []string{"subnet-dmz"}}), 400, wrongValue, "Error occurred while DescribeSubnets. EC2 Error Code: InvalidSubnetID.NotFound. EC2 Error Message: The subnet ID 'subnet-dmz' does not exist; use one of subnet-lan, subnet-web, or add the network dmz to the configuration file of sandboxd serve"},
		{"POST", create, with("VpcConfig", j{"SubnetIds": []string{"subnet-lan", "subnet-web"}}), 400, wrongValue, "VpcConfig has 2 subnets: a function has one network; name one"},

		// Variables. Their values are not repeated, but for the one text that AWS has them in.
		{"POST", create, with("Environment", j{"Variables": j{"1A": "secret"}}), 400, invalid, "1 validation error detected: Value at 'environment.variables' failed to satisfy constraint: Map keys must satisfy constraint: [Member must satisfy regular expression pattern: [a-zA-Z]([a-zA-Z0-9_])+]"},
		{"POST", create, with("Environment", j{"Variables": j{"A1": nil}}), 400, invalid, "1 validation error detected: Value at 'environment.variables' failed to satisfy constraint: Map value must satisfy constraint: [Member must not be null]"},
		{"POST", create, with("Environment", j{"Variables": j{"AWS_REGION": "secret", "LAMBDA_TASK_ROOT": "secret", "OK": "secret"}}), 400, wrongValue, "Lambda was unable to configure your environment variables because the environment variables you have provided contains reserved keys that are currently not supported for modification. Reserved keys used in this request: AWS_REGION, LAMBDA_TASK_ROOT"},
		{"POST", create, with("Environment", j{"Variables": j{"OK": "secret\x00"}}), 400, wrongValue, "Lambda was unable to configure your environment variables because the environment variables you have provided are not valid: the value of OK holds a NUL byte"},
		{"POST", create, `{"FunctionName":"f","Runtime":"python3.12","Handler":"h","Role":"` + testRole + `","Code":{"ZipFile":"UEs="},"Environment":{"Variables":{"SMALL":"ok","LARGE_VAR":"` + strings.Repeat("x", 4081-13) + `"}}}`, 400, wrongValue, "Lambda was unable to configure your environment variables because the environment variables you have provided exceeded the 4KB limit. String measured: " + `{"SMALL":"ok","LARGE_VAR":"` + strings.Repeat("x", 4081-13) + `"}`},

		// Updates.
		{"PUT", config, j{"Role": "r1"}, 400, invalid, one("r1", "role", matching(rolePattern))},
		{"PUT", config, j{"Runtime": "PYTHON3.9"}, 400, wrongValue, "Value PYTHON3.9 at 'runtime' failed to satisfy constraint: Member must satisfy enum value set: [" + strings.Join(runtimes, ", ") + "] or be a valid ARN"},
		{"PUT", config, j{"RevisionId": "wrong"}, 412, "PreconditionFailedException", "The Revision Id provided does not match the latest Revision Id. Call the GetFunction/GetAlias API to retrieve the latest Revision Id"},
		{"PUT", config, j{"Timeout": "5"}, 400, badJSON, "STRING_VALUE can not be converted to an Integer"},
		{"PUT", code, j{"ZipFile": []byte("x"), "RevisionId": "wrong"}, 412, "PreconditionFailedException", "The Revision Id provided does not match the latest Revision Id. Call the GetFunction/GetAlias API to retrieve the latest Revision Id"},
		{"PUT", code, j{"ImageUri": "example.org/a:1"}, 400, wrongValue, "Please don't provide ImageUri when updating a function with packageType Zip."},
		{"PUT", code, j{"ZipFile": []byte("not a zip")}, 400, wrongValue, "Could not unzip uploaded file. Please check your file, then try to upload again."},
		{"PUT", code, j{}, 400, wrongValue, "Please provide a source for function code."},
		{"PUT", named("there:1", "/code", ""), j{"ZipFile": []byte("x")}, 400, wrongValue, "Only $LATEST of a function can be updated: leave the qualifier 1 out"},

		// Lists.
		{"GET", create + "?FunctionVersion=invalid", nil, 400, invalid, one("invalid", "functionVersion", "satisfy enum value set: [ALL]")},
		{"GET", create + "?MaxItems=0", nil, 400, invalid, one("0", "maxItems", "have value greater than or equal to 1")},
		{"GET", create + "?MaxItems=x", nil, 400, badJSON, "STRING_VALUE can not be converted to an Integer"},
		{"GET", create + "?Marker=%21", nil, 400, wrongValue, "Invalid marker: send the NextMarker of an answer to ListFunctions, or none"},
	}...)
}

// Each request is refused with the words of AWS, and changes nothing.
func TestNegatives(t *testing.T) {
	f := newFixture(t, func(_ *Config, f *fixture) { f.deployer.onRegister = f.readZip })
	f.create(newFunction("there"))
	before := f.store.copy()
	delete(before.rows, counterKey)
	for _, n := range negatives() {
		a := f.send(n.method, n.target, n.body)
		if a.status != n.status || a.errorType() != n.kind || a.text() != n.message {
			t.Errorf("%s %s %.300v:\n%d %s %s\nwant\n%d %s %s", n.method, n.target, n.body, a.status, a.errorType(), a.text(), n.status, n.kind, n.message)
		}
		f.shaped(a)
		after := f.store.copy()
		delete(after.rows, counterKey) // a number may be lost
		if len(after.rows) != len(before.rows) {
			t.Fatalf("%s %s %v changed the store", n.method, n.target, n.body)
		}
		for k, v := range before.rows {
			if string(after.rows[k]) != string(v) {
				t.Fatalf("%s %s %v changed %s: %s, before %s", n.method, n.target, n.body, k, after.rows[k], v)
			}
		}
	}
	for range len(f.faults) {
		t.Error(<-f.faults)
	}
	if f.blobs.pins != 0 {
		t.Errorf("%d blobs are held", f.blobs.pins)
	}
}

// shaped checks that an answer is one that an SDK understands.
func (f *fixture) shaped(a answer) {
	f.t.Helper()
	if a.header.Get("X-Amzn-Requestid") == "" {
		f.t.Errorf("%d %s: no request id", a.status, a.raw)
	}
	if a.status == http.StatusNoContent {
		if a.raw != "" {
			f.t.Errorf("204 with the body %q", a.raw)
		}
		return
	}
	if a.header.Get("Content-Type") != "application/json" || a.body == nil {
		f.t.Errorf("%d %s: no JSON", a.status, a.raw)
	}
	if a.status < 300 {
		return
	}
	kind := a.errorType()
	s := api().shape(kind)
	switch {
	case kind == "":
		f.t.Errorf("%d %s: no type of error", a.status, a.raw)
	case s == nil || !s.Exception: // those that AWS has besides its model
		if a.body["Type"] != nil {
			f.t.Errorf("%s has a Type: %s", kind, a.raw)
		}
	default:
		unavailable := kind == "ServiceException" && a.status == http.StatusServiceUnavailable
		if a.status != s.Status && !unavailable || a.body["Type"] == nil {
			f.t.Errorf("%s: %d %s, the model has the status %d", kind, a.status, a.raw, s.Status)
		}
		for name := range a.body {
			if s.member(name) == nil {
				f.t.Errorf("%s has no member %s: %s", kind, name, a.raw)
			}
		}
	}
}
