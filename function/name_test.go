package function

import "testing"

// INV-01.
func TestParseReference(t *testing.T) {
	for text, want := range map[string]Reference{
		"f":                         {Name: "f"},
		"a.b":                       {Name: "a.b"},
		"f:1":                       {Name: "f", Qualifier: "1"},
		"f:$LATEST":                 {Name: "f", Qualifier: "$LATEST"},
		"function:f":                {Name: "f"},
		"function:f:live":           {Name: "f", Qualifier: "live"},
		"function":                  {Name: "function"},
		"123456789012:f":            {Account: "123456789012", Name: "f"},
		"123456789012:function:f:1": {Account: "123456789012", Name: "f", Qualifier: "1"},
		"eu-west-1:123456789012:f":  {Region: "eu-west-1", Account: "123456789012", Name: "f"},
		"us-gov-west-1:f":           {Region: "us-gov-west-1", Name: "f"},
		"arn:aws:lambda:eusc-de-east-1:123456789012:function:f":                  {Partition: "aws", Region: "eusc-de-east-1", Account: "123456789012", Name: "f"},
		"arn:aws-cn:lambda:cn-north-1:123456789012:function:f:$LATEST.PUBLISHED": {Partition: "aws-cn", Region: "cn-north-1", Account: "123456789012", Name: "f", Qualifier: "$LATEST.PUBLISHED"},
		"arn:aws:lambda:eu-west-1:123456789012:function":                         {Partition: "aws", Region: "eu-west-1", Account: "123456789012", Name: "function"},
	} {
		if got, ok := ParseReference(text); !ok || got != want {
			t.Errorf("%s: %+v, %v; want %+v", text, got, ok, want)
		}
	}
	for _, text := range []string{"", "f!", "f:", ":f", "f:1:2", "function:f:$LATEST:1", "arn:aws:ec2:eu-west-1:123456789012:instance:i", "f\n", "arn:aws:lambda::123456789012:function:f"} {
		if got, ok := ParseReference(text); ok {
			t.Errorf("%q is taken as %+v", text, got)
		}
	}
}
