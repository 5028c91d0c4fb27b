package lambda

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"slices"

	"github.com/sandboxd/sandboxd/function"
)

// Limits of the model that it does not say.
const (
	maxName  = 64
	maxTags  = 50
	pageSize = 50 // functions in an answer of ListFunctions
)

// locate returns the name and the qualifier that a request has for a function, after it has
// checked that the function can be here, and that the caller may do what it asks for.
func (s *Service) locate(c *call) (name, qualifier string, err error) {
	text := c.in.text("FunctionName")
	ref, ok := function.ParseReference(text)
	switch {
	case !ok: // the model's pattern is narrower
		return "", "", badParameter("The function name %q is not valid", text)
	case ref.Region != "" && ref.Region != s.cfg.Region:
		return "", "", refuse("ResourceNotFoundException", "Functions from '%s' are not reachable in this region ('%s')", ref.Region, s.cfg.Region)
	case ref.Account != "" && ref.Account != s.cfg.AccountID, ref.Partition != "" && ref.Partition != "aws":
		return "", "", accessDenied()
	}
	qualifier = c.in.text("Qualifier")
	switch {
	case ref.Qualifier == "":
	case qualifier != "" && qualifier != ref.Qualifier:
		return "", "", badParameter("The derived qualifier from the function name does not match the specified qualifier.")
	default:
		qualifier = ref.Qualifier
	}
	c.audit.ARN = s.arn(ref.Name)
	return ref.Name, qualifier, s.permit(c, c.audit.ARN)
}

// find returns the function that a request is about. Of its versions there is only $LATEST.
func (s *Service) find(c *call) (*record, string, error) {
	name, qualifier, err := s.locate(c)
	if err != nil {
		return nil, "", err
	}
	rec, err := s.read(c.Context(), name)
	switch {
	case err != nil:
		return nil, "", err
	case rec == nil || qualifier != "" && qualifier != latest:
		arn := s.arn(name)
		if qualifier != "" {
			arn += ":" + qualifier
		}
		return nil, "", notFound(arn)
	}
	return rec, qualifier, nil
}

func (s *Service) read(ctx context.Context, name string) (rec *record, err error) {
	err = s.cfg.Store.View(ctx, func(tx Reader) (err error) {
		rec, err = load(tx, name)
		return err
	})
	return rec, err
}

func (s *Service) getFunctionConfiguration(c *call) (any, error) {
	rec, qualifier, err := s.find(c)
	if err != nil {
		return nil, err
	}
	return s.describe(rec, qualifier != ""), nil
}

// functionAnswer is the answer to GetFunction.
type functionAnswer struct {
	Configuration *configuration
	Code          codeLocation
	Tags          map[string]string `json:",omitempty"`
}

type codeLocation struct {
	RepositoryType   string
	Location         string `json:",omitempty"`
	ImageUri         string `json:",omitempty"`
	ResolvedImageUri string `json:",omitempty"`
}

func (s *Service) getFunction(c *call) (any, error) {
	rec, qualifier, err := s.find(c)
	if err != nil {
		return nil, err
	}
	d := rec.shown()
	location := codeLocation{RepositoryType: "S3", Location: s.codeURL(c.Host, d.Code.SHA256)}
	if d.Package == imagePackage {
		location = codeLocation{RepositoryType: "ECR", ImageUri: d.Code.ImageURI, ResolvedImageUri: d.Code.Resolved}
	}
	return functionAnswer{s.describe(rec, qualifier != ""), location, rec.Tags}, nil
}

// functionList is the answer to ListFunctions.
type functionList struct {
	Functions  []*configuration
	NextMarker *string
}

func (s *Service) listFunctions(c *call) (any, error) {
	limit := pageSize
	if c.in.has("MaxItems") {
		limit = min(limit, c.in.number("MaxItems"))
	}
	after := ""
	if marker := c.in.text("Marker"); marker != "" {
		name, err := base64.RawURLEncoding.DecodeString(marker)
		if err != nil || !function.NameForm.Match(name) {
			return nil, badParameter("Invalid marker: send the NextMarker of an answer to ListFunctions, or none")
		}
		after = functionKeys + string(name)
	}
	list := functionList{Functions: []*configuration{}}
	if region := c.in.text("MasterRegion"); region != "" && region != "ALL" && region != s.cfg.Region {
		return list, nil // the functions of other regions have no copies here
	}
	var records []record
	err := s.cfg.Store.View(c.Context(), func(tx Reader) error {
		records = nil
		entries, err := tx.List(functionKeys, after, limit+1)
		if err != nil {
			return err
		}
		for _, e := range entries {
			var rec record
			if err := decodeRow(e.Key, e.Value, &rec); err != nil {
				return err
			}
			records = append(records, rec)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if len(records) > limit {
		records = records[:limit]
		marker := base64.RawURLEncoding.EncodeToString([]byte(records[limit-1].Name))
		list.NextMarker = &marker
	}
	for i := range records {
		list.Functions = append(list.Functions, s.describe(&records[i], c.in.text("FunctionVersion") != "").listed())
	}
	return list, nil
}

func (s *Service) createFunction(c *call) (any, error) {
	name, qualifier, err := s.locate(c)
	if err != nil {
		return nil, err
	}
	switch {
	case len(name) > maxName:
		return nil, badParameter("%s", violations([]string{violation("'"+name+"'", true, "functionName", fmt.Sprintf("Member must have length less than or equal to %d", maxName))}))
	case qualifier != "":
		return nil, badParameter("The name of a new function must not have a qualifier: %s has %s", name, qualifier)
	}
	tags := c.in.mapping("Tags").strings()
	if len(tags) > maxTags {
		return nil, badParameter("Number of tags exceeds resource tag limit.")
	}
	d := s.newDefinition(name)
	if p := c.in.text("PackageType"); p != "" {
		d.Package = p
	}
	if err := s.change(name, d, c.in); err != nil {
		return nil, err
	}
	if err := s.takeCode(c, d, c.in.object("Code")); err != nil {
		return nil, err
	}
	rec := &record{
		Name: name, Tags: tags, Next: d, Modified: s.cfg.Now(), RevisionID: s.cfg.NewID(),
		State: pending, StateReason: "The function is being created.", StateReasonCode: "Creating",
	}
	exists := conflict("Function already exist: %s", name)
	if old, err := s.read(c.Context(), name); err != nil || old != nil {
		return nil, orElse(err, exists)
	}
	if err := s.prepare(c, rec); err != nil {
		return nil, err
	}
	err = s.cfg.Store.Update(c.Context(), func(tx Tx) error {
		if old, err := load(tx, name); err != nil || old != nil {
			return orElse(err, exists)
		}
		return s.commit(tx, nil, rec)
	})
	if err != nil {
		s.rollout.release(d.Number)
		return nil, err
	}
	answer := s.describe(rec, false)
	s.rollout.Begin(name)
	return answer, nil
}

// orElse returns the first error, or the second if the first is nil.
func orElse(err error, otherwise *Error) error {
	if err != nil {
		return err
	}
	return otherwise
}

// takeCode sets the code of a definition to what a request has.
func (s *Service) takeCode(c *call, d *definition, in object) error {
	if err := unsupportedMembers(in); err != nil {
		return err
	}
	image := in.text("ImageUri")
	switch {
	case d.Package == imagePackage && image == "":
		return badParameter("Please provide ImageUri when updating a function with packageType Image.")
	case d.Package == imagePackage:
		return badParameter("sandboxd does not support ImageUri; send the code as ZipFile")
	case image != "":
		return badParameter("Please don't provide ImageUri when updating a function with packageType Zip.")
	}
	if err := s.takeLocal(c, in); err != nil {
		return err
	}
	switch {
	case c.upload == nil:
		return badParameter("Please provide a source for function code.")
	case c.upload.Size == 0:
		return badParameter("Uploaded file must be a non-empty zip")
	}
	d.Code = code{SHA256: hex.EncodeToString(c.upload.Digest[:]), Size: c.upload.Size}
	return nil
}

// prepare gives the next definition of a function its number, and has root extract its code, so
// that a client learns at once of code that cannot be used.
func (s *Service) prepare(c *call, rec *record) error {
	err := s.cfg.Store.Update(c.Context(), func(tx Tx) (err error) {
		rec.Next.Number, err = nextNumber(tx)
		return err
	})
	if err != nil {
		return err
	}
	return s.register(c, rec)
}

// commit writes a function with its next definition, and the task of rolling it out. old is what
// it replaces, nil for a new function.
func (s *Service) commit(tx Tx, old, rec *record) error {
	functions, bytes := 0, rec.bytes()
	if old == nil {
		functions = 1
	} else {
		bytes -= old.bytes()
		if old.Next != nil { // of a function that could not be created
			if err := tx.Delete(revisionKey(old.Next.Number)); err != nil {
				return err
			}
		}
	}
	var u usage
	if _, err := get(tx, usageKey, &u); err != nil {
		return err
	}
	switch {
	case functions > 0 && u.Functions >= s.cfg.Limits.Functions:
		return badParameter("The account has %d functions, the most that sandboxd allows: delete one, or raise the limit of functions", u.Functions)
	case bytes > 0 && u.CodeBytes+bytes > s.cfg.Limits.CodeBytes:
		return refuse("CodeStorageExceededException", "Code storage limit exceeded.")
	}
	if err := addUsage(tx, functions, bytes); err != nil {
		return err
	}
	if err := put(tx, revisionKey(rec.Next.Number), revisionRow{Name: rec.Name}); err != nil {
		return err
	}
	if err := setTask(tx, rec.Name, task{Number: rec.Next.Number}); err != nil {
		return err
	}
	return put(tx, functionKeys+rec.Name, rec)
}

func (s *Service) deleteFunction(c *call) (any, error) {
	name, qualifier, err := s.locate(c)
	if err != nil {
		return nil, err
	}
	switch {
	case qualifier == latest:
		return nil, badParameter("$LATEST version cannot be deleted without deleting the function.")
	case isAlias(qualifier):
		return nil, badParameter("Deletion of aliases is not currently supported.")
	}
	var rec *record
	err = s.cfg.Store.Update(c.Context(), func(tx Tx) (err error) {
		if rec, err = load(tx, name); err != nil || rec == nil {
			return orElse(err, notFound(s.arn(name)))
		}
		if qualifier != "" {
			return nil // a version that is not there is deleted
		}
		return s.remove(tx, rec)
	})
	if err != nil || qualifier != "" {
		return nil, err
	}
	select {
	case <-s.rollout.Begin(name):
	case <-c.Context().Done(): // it is deleted all the same
	}
	for _, d := range []*definition{rec.Current, rec.Next} {
		if d != nil {
			s.rollout.release(d.Number)
		}
	}
	return nil, nil
}

// isAlias reports whether a qualifier is the name of an alias.
func isAlias(qualifier string) bool {
	digits := true
	for _, r := range qualifier {
		if r < '0' || r > '9' {
			digits = false
		}
	}
	return qualifier != "" && !digits && !slices.Contains([]byte(qualifier), '$')
}

// remove deletes a function, and leaves the task of ending it.
func (s *Service) remove(tx Tx, rec *record) error {
	number, err := nextNumber(tx)
	if err != nil {
		return err
	}
	if rec.Current != nil {
		if err := s.rollout.retire(tx, rec.Name, rec.Current); err != nil {
			return err
		}
	}
	if rec.Next != nil {
		if err := tx.Delete(revisionKey(rec.Next.Number)); err != nil {
			return err
		}
	}
	if err := addUsage(tx, -1, -rec.bytes()); err != nil {
		return err
	}
	if err := tx.Delete(functionKeys + rec.Name); err != nil {
		return err
	}
	return setTask(tx, rec.Name, task{Number: number, Gone: true})
}
