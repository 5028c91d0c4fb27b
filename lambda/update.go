package lambda

import (
	"errors"
)

func (s *Service) updateFunctionConfiguration(c *call) (any, error) {
	name, err := s.unqualified(c)
	if err != nil {
		return nil, err
	}
	var rec *record
	err = s.cfg.Store.Update(c.Context(), func(tx Tx) error {
		old, err := s.updatable(tx, c, name)
		if err != nil {
			return err
		}
		next := *old.shown()
		if err := s.change(name, &next, c.in); err != nil {
			return err
		}
		if next.Number, err = nextNumber(tx); err != nil {
			return err
		}
		rec = s.successor(old, &next)
		return s.commit(tx, old, rec)
	})
	if err != nil {
		return nil, err
	}
	answer := s.describe(rec, false)
	s.rollout.Begin(name)
	return answer, nil
}

func (s *Service) updateFunctionCode(c *call) (any, error) {
	name, err := s.unqualified(c)
	if err != nil {
		return nil, err
	}
	var old *record
	err = s.cfg.Store.View(c.Context(), func(tx Reader) (err error) {
		old, err = s.updatable(tx, c, name)
		return err
	})
	if err != nil {
		return nil, err
	}
	next := *old.shown()
	if err := s.takeCode(c, &next, c.in); err != nil {
		return nil, err
	}
	if a := c.in.list("Architectures"); len(a) == 1 {
		next.Arch = a[0]
	}
	if err := s.check(name, &next); err != nil {
		return nil, err
	}
	rec := s.successor(old, &next)
	if err := s.prepare(c, rec); err != nil {
		return nil, err
	}
	if c.in.flag("DryRun") {
		s.rollout.release(next.Number)
		old.shown().Code = next.Code
		return s.describe(old, false), nil
	}
	err = s.cfg.Store.Update(c.Context(), func(tx Tx) error {
		now, err := s.updatable(tx, c, name)
		if err != nil {
			return err
		}
		if now.RevisionID != old.RevisionID {
			return updating(s.arn(name))
		}
		return s.commit(tx, now, rec)
	})
	if err != nil {
		s.rollout.release(next.Number)
		return nil, err
	}
	answer := s.describe(rec, false)
	s.rollout.Begin(name)
	return answer, nil
}

// unqualified returns the name of the function to update, which is always $LATEST.
func (s *Service) unqualified(c *call) (string, error) {
	name, qualifier, err := s.locate(c)
	if err == nil && qualifier != "" && qualifier != latest {
		err = badParameter("Only $LATEST of a function can be updated: leave the qualifier %s out", qualifier)
	}
	return name, err
}

// updatable returns a function that a request wants to update, if it can be updated now.
func (s *Service) updatable(tx Reader, c *call, name string) (*record, error) {
	rec, err := load(tx, name)
	switch {
	case err != nil:
		return nil, err
	case rec == nil:
		return nil, notFound(s.arn(name))
	}
	if id := c.in.text("RevisionId"); id != "" && id != rec.RevisionID {
		return nil, refuse("PreconditionFailedException", "The Revision Id provided does not match the latest Revision Id. Call the GetFunction/GetAlias API to retrieve the latest Revision Id")
	}
	switch {
	case rec.State == pending:
		return nil, conflict("The operation cannot be performed at this time. The function is currently in the following state: %s", pending)
	case rec.Update == inProgress:
		return nil, updating(s.arn(name))
	}
	return rec, nil
}

func updating(arn string) error {
	return conflict("The operation cannot be performed at this time. An update is in progress for resource: %s", arn)
}

// successor returns a function whose update to a definition begins.
func (s *Service) successor(old *record, next *definition) *record {
	rec := *old
	rec.Next, rec.Modified, rec.RevisionID = next, s.cfg.Now(), s.cfg.NewID()
	const reason, code = "The function is being created.", "Creating"
	if rec.Current == nil { // it could not be created before
		rec.State, rec.StateReason, rec.StateReasonCode = pending, reason, code
		rec.Update, rec.UpdateReason, rec.UpdateReasonCode = "", "", ""
	} else {
		rec.Update, rec.UpdateReason, rec.UpdateReasonCode = inProgress, reason, code
	}
	return &rec
}

// register has root extract the code of a function's next definition.
func (s *Service) register(c *call, rec *record) error {
	err := s.cfg.Deployer.Register(c.Context(), s.revision(rec, rec.Next))
	if bad, ok := errors.AsType[*CodeError](err); ok {
		return bad.refusal()
	}
	return err
}
