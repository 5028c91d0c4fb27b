package isolation

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// maxRules bounds each list of a policy: every rule is one step for every packet that
// opens a connection.
const maxRules = 64

// Policy is what a sandbox with NetworkEgress may reach; all else is refused.
//
// Some addresses are closed even within a range that is allowed: those of the table
// closed, as private ranges and metadata services, and the host's own. A rule opens
// closed addresses only if it names nothing but such: 10.1.0.0/16 opens part of a
// private range, 0.0.0.0/0 does not. The host's own addresses are opened by rules for
// a single address only, other sandboxes by none.
type Policy struct {
	Allow []Rule     // by address
	Names []NameRule // by name: what the resolver answers, and whose public addresses are open then
}

// Service is a port and a protocol.
type Service struct {
	Port     uint16 // 0 means any
	Protocol string // "tcp" or "udp"; "" means any
}

func (s Service) String() string {
	text := ""
	if s.Port != 0 {
		text = ":" + strconv.Itoa(int(s.Port))
	}
	if s.Protocol != "" {
		text += "/" + s.Protocol
	}
	return text
}

// Rule opens a service on a range of addresses.
type Rule struct {
	Prefix netip.Prefix
	Service
}

func (r Rule) String() string {
	text := r.Prefix.String()
	if r.Prefix.Addr().Is6() {
		text = "[" + text + "]"
	}
	return text + r.Service.String()
}

// NameRule lets names be looked up, and opens a service on the addresses found.
type NameRule struct {
	Name string // lower case, without a dot at the end; "*.example.com" is all names below, "*" all names
	Service
}

func (r NameRule) String() string { return r.Name + r.Service.String() }

func (r NameRule) matches(name string) bool {
	below, wild := strings.CutPrefix(r.Name, "*")
	return r.Name == name || wild && strings.HasSuffix(name, below) && len(name) > len(below)
}

// ParseRule reads a rule in the form CIDR[:PORT][/tcp|udp]. A single address is a range
// too; IPv6 stands in brackets.
func ParseRule(text string) (Rule, error) {
	const form = "must be CIDR[:PORT][/tcp|udp], such as 203.0.113.0/24:443/tcp or [2001:db8::/32]:443"
	rest, service := cutProtocol(text)
	address := rest
	if inner, ok := strings.CutPrefix(rest, "["); ok {
		if address, rest, ok = strings.Cut(inner, "]"); !ok || !strings.Contains(address, ":") {
			return Rule{}, errors.New(form)
		}
	} else if address, rest, ok = strings.Cut(rest, ":"); ok {
		rest = ":" + rest
	}
	if err := service.parsePort(rest); err != nil {
		return Rule{}, fmt.Errorf("%w: the port %w", errors.New(form), err)
	}
	prefix, err := netip.ParsePrefix(address)
	if !strings.Contains(address, "/") {
		var a netip.Addr
		if a, err = netip.ParseAddr(address); err == nil && a.Zone() == "" {
			prefix = netip.PrefixFrom(a, a.BitLen())
		}
	}
	if err != nil || !prefix.IsValid() {
		return Rule{}, errors.New(form)
	}
	r := Rule{prefix, service}
	return r, r.validate()
}

func (r Rule) validate() error {
	if !r.Prefix.IsValid() {
		return errors.New("has no address")
	}
	if r.Prefix != r.Prefix.Masked() {
		return fmt.Errorf("has bits beyond its length: %v is the range, %v the address", r.Prefix.Masked(), r.Prefix.Addr())
	}
	for _, p := range unreachable {
		if within(r.Prefix, p) {
			return fmt.Errorf("is of %v, which no rule can open", p)
		}
	}
	return r.Service.validate()
}

func (s Service) validate() error {
	if s.Protocol != "" && s.Protocol != "tcp" && s.Protocol != "udp" {
		return fmt.Errorf("has the protocol %q, not tcp or udp", s.Protocol)
	}
	return nil
}

// nameForm is what a name may look like: labels of letters, digits, - and _.
var nameForm = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^(\*|(\*\.)?([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)$`)
})

// maxName is the longest name that there is (RFC 1035, as text).
const maxName = 253

// ParseNameRule reads a rule in the form NAME[:PORT][/tcp|udp].
func ParseNameRule(text string) (NameRule, error) {
	rest, service := cutProtocol(text)
	name, port, ok := strings.Cut(rest, ":")
	if ok {
		port = ":" + port
	}
	if err := service.parsePort(port); err != nil {
		return NameRule{}, fmt.Errorf("must be NAME[:PORT][/tcp|udp]: the port %w", err)
	}
	r := NameRule{strings.TrimSuffix(strings.ToLower(name), "."), service}
	return r, r.validate()
}

func (r NameRule) validate() error {
	if !nameForm().MatchString(r.Name) || len(r.Name) > maxName {
		return errors.New("must be NAME[:PORT][/tcp|udp], where NAME is as example.com, *.example.com or *")
	}
	if _, err := netip.ParseAddr(r.Name); err == nil {
		return errors.New("is an address, not a name: use --allow")
	}
	return r.Service.validate()
}

// cutProtocol takes the protocol off the end of a rule.
func cutProtocol(text string) (rest string, s Service) {
	for _, protocol := range []string{"tcp", "udp"} {
		if rest, ok := strings.CutSuffix(text, "/"+protocol); ok {
			return rest, Service{Protocol: protocol}
		}
	}
	return text, Service{}
}

// parsePort reads ":PORT" or nothing.
func (s *Service) parsePort(text string) error {
	if text == "" {
		return nil
	}
	n, err := strconv.ParseUint(strings.TrimPrefix(text, ":"), 10, 16)
	if err != nil || n == 0 || text[0] != ':' {
		return errors.New("must be a number from 1 to 65535")
	}
	s.Port = uint16(n)
	return nil
}

func (p Policy) validate() error {
	if len(p.Allow) > maxRules || len(p.Names) > maxRules {
		return fmt.Errorf("at most %d rules by address and %d by name are allowed", maxRules, maxRules)
	}
	for _, r := range p.Allow {
		if err := r.validate(); err != nil {
			return fmt.Errorf("rule %v %w", r, err)
		}
	}
	for _, r := range p.Names {
		if err := r.validate(); err != nil {
			return fmt.Errorf("rule %v %w", r, err)
		}
	}
	return nil
}

// Services are the different services that names open, in the order of the rules.
func (p Policy) Services() []Service {
	var list []Service
	for _, r := range p.Names {
		if !slices.Contains(list, r.Service) {
			list = append(list, r.Service)
		}
	}
	return list
}

// Match returns which of Services are open on the addresses of name; none if it must not
// be looked up. name is in lower case, without a dot at its end.
func (p Policy) Match(name string) []int {
	var list []int
	services := p.Services()
	for _, r := range p.Names {
		if i := slices.Index(services, r.Service); r.matches(name) && !slices.Contains(list, i) {
			list = append(list, i)
		}
	}
	return list
}

// within reports whether all of a is in b.
func within(a, b netip.Prefix) bool { return a.Bits() >= b.Bits() && b.Contains(a.Addr()) }
