package builtin

import (
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// octet is one octet of a signature: what stands there under mask.
type octet struct{ val, mask byte }

// element is a step of a signature: fixed octets, one of several alternatives, or a gap.
type element struct {
	alts     [][]octet // one for fixed octets; several for (aa|bb)
	not      bool      // !(aa|bb)
	min, max int64     // a gap, when alts is nil
}

// segment is a part of a signature whose octets lie within a bounded distance of its anchor. Segments follow each
// other at any distance from gap on.
type segment struct {
	gap    int64
	elems  []element
	anchor int // the element that holds the window
	offset int // of the window in that element
	window []byte
}

// pattern is a signature of an .ndb file.
type pattern struct {
	name     string
	target   int
	fold     bool // letters match in either case
	segments []segment
	from     int64 // where the first segment may begin: [from, from+slack], from the end of the object if fromEnd
	slack    int64
	fromEnd  bool
	anywhere bool
}

// Bounds for signatures; what is beyond is reported as a bad line.
const (
	maxSlack    = 32 << 10 // of gaps with an upper bound, together, in one segment
	maxSegments = 64
	minWindow   = 3
	maxWindow   = 16
	minRarity   = 3 // different octets without which a long window is worth less than a short one with them
)

var errNoRun = errors.New("no run of three or more fixed octets to look for")

// parseNDB reads name:target:offset:hexsig[:minlevel[:maxlevel]] (ClamAV manual, "extended signature format").
func parseNDB(line string) (*pattern, error) {
	f := strings.Split(line, ":")
	if len(f) < 4 || len(f) > 6 {
		return nil, fmt.Errorf("%d fields instead of name:target:offset:signature", len(f))
	}
	p := &pattern{name: f[0]}
	if p.name == "" {
		return nil, errors.New("name is empty")
	}
	var err error
	if p.target, err = strconv.Atoi(f[1]); err != nil || p.target < 0 || p.target > 15 {
		return nil, fmt.Errorf("target %q is not a number from 0 to 15", f[1])
	}
	// ClamAV compares such signatures with text that it has turned into lower case; see docs/reference/signatures.md.
	p.fold = p.target == 3 || p.target == 7
	if err := p.parseOffset(f[2]); err != nil {
		return nil, err
	}
	if err := p.parseBody(f[3]); err != nil {
		return nil, err
	}
	if !p.anywhere && p.fromEnd && p.from == 0 {
		return nil, fmt.Errorf("offset %q leaves no room for octets", f[2])
	}
	return p, nil
}

// parseOffset reads "*", "n", "n,shift", "EOF-n", "EOF-n,shift".
func (p *pattern) parseOffset(s string) error {
	if s == "*" {
		p.anywhere = true
		return nil
	}
	text, shift, ranged := strings.Cut(s, ",")
	if ranged {
		n, err := strconv.ParseInt(shift, 10, 64)
		if err != nil || n < 0 {
			return fmt.Errorf("offset %q: the part after the comma is not a number", s)
		}
		p.slack = n
	}
	rest, end := strings.CutPrefix(text, "EOF-")
	n, err := strconv.ParseInt(rest, 10, 64)
	if err != nil || n < 0 {
		return fmt.Errorf("offset %q is not supported: only *, n, n,shift, EOF-n and EOF-n,shift are", s)
	}
	p.from, p.fromEnd = n, end
	return nil
}

// parseBody reads the hexadecimal signature into segments.
func (p *pattern) parseBody(s string) error {
	cur := segment{}
	var run []octet
	flush := func() {
		if len(run) > 0 {
			cur.elems = append(cur.elems, element{alts: [][]octet{run}})
			run = nil
		}
	}
	cut := func(gap int64) error {
		flush()
		if len(cur.elems) == 0 {
			return errors.New("a gap without octets before it")
		}
		p.segments = append(p.segments, cur)
		cur = segment{gap: gap}
		return nil
	}
	for i := 0; i < len(s); {
		switch c := s[i]; {
		case c == '*':
			if err := cut(0); err != nil {
				return err
			}
			i++
		case c == '{':
			end := strings.IndexByte(s[i:], '}')
			if end < 0 {
				return fmt.Errorf("{ at column %d is not closed", i+1)
			}
			lo, hi, err := parseGap(s[i+1 : i+end])
			if err != nil {
				return err
			}
			if hi == math.MaxInt64 {
				if err := cut(lo); err != nil {
					return err
				}
			} else {
				flush()
				if len(cur.elems) == 0 {
					return errors.New("a gap without octets before it")
				}
				cur.elems = append(cur.elems, element{min: lo, max: hi})
			}
			i += end + 1
		case c == '(' || c == '!':
			e, n, err := p.parseAlternatives(s[i:])
			if err != nil {
				return fmt.Errorf("column %d: %w", i+1, err)
			}
			flush()
			cur.elems = append(cur.elems, e)
			i += n
		case c == '[':
			return errors.New("[n-m] is not supported")
		default:
			if i+2 > len(s) {
				return errors.New("odd number of hexadecimal digits")
			}
			o, err := p.parseOctet(s[i : i+2])
			if err != nil {
				return fmt.Errorf("column %d: %w", i+1, err)
			}
			run = append(run, o)
			i += 2
		}
	}
	flush()
	p.segments = append(p.segments, cur)
	return p.finish()
}

// finish checks the segments and chooses the window of each.
func (p *pattern) finish() error {
	if len(p.segments) > maxSegments {
		return fmt.Errorf("more than %d parts between * and {n-}", maxSegments)
	}
	for i := range p.segments {
		g := &p.segments[i]
		if len(g.elems) == 0 {
			return errors.New("a gap without octets after it")
		}
		var slack int64
		for _, e := range g.elems {
			if e.alts == nil {
				slack += e.max - e.min
			}
		}
		if slack > maxSlack {
			return fmt.Errorf("gaps {n-m} of more than %d octets are not supported", maxSlack)
		}
		if g.elems[len(g.elems)-1].alts == nil {
			return errors.New("a gap without octets after it")
		}
		if !g.choose() {
			return errNoRun
		}
	}
	return nil
}

// parseGap reads the inside of {n}, {n-m}, {-m}, {n-}.
func parseGap(s string) (lo, hi int64, err error) {
	from, to, ranged := strings.Cut(s, "-")
	bad := fmt.Errorf("gap {%s} is not {n}, {n-m}, {-m} or {n-}", s)
	hi = math.MaxInt64
	if from != "" {
		if lo, err = strconv.ParseInt(from, 10, 32); err != nil || lo < 0 {
			return 0, 0, bad
		}
	}
	switch {
	case !ranged && from != "":
		hi = lo
	case to != "":
		if hi, err = strconv.ParseInt(to, 10, 32); err != nil || hi < lo {
			return 0, 0, bad
		}
	case from == "":
		return 0, 0, bad
	}
	return lo, hi, nil
}

// parseAlternatives reads (aa|bb|…) or !(aa|bb) and tells how much of s it took.
func (p *pattern) parseAlternatives(s string) (e element, n int, err error) {
	if s[0] == '!' {
		e.not = true
		n++
	}
	if n >= len(s) || s[n] != '(' {
		return e, 0, errors.New("! without (")
	}
	end := strings.IndexByte(s, ')')
	if end < 0 {
		return e, 0, errors.New("( is not closed")
	}
	inside := s[n+1 : end]
	if strings.ContainsAny(inside, "BLW({*![") {
		return e, 0, fmt.Errorf("(%s) is not supported: only alternatives of octets are", inside)
	}
	for _, a := range strings.Split(inside, "|") {
		var one []octet
		if a == "" || len(a)%2 != 0 {
			return e, 0, fmt.Errorf("alternative %q is empty or has an odd number of digits", a)
		}
		for i := 0; i < len(a); i += 2 {
			o, err := p.parseOctet(a[i : i+2])
			if err != nil {
				return e, 0, err
			}
			one = append(one, o)
		}
		if e.not && len(e.alts) > 0 && len(one) != len(e.alts[0]) {
			return e, 0, errors.New("!( ) with alternatives of different lengths is not supported")
		}
		e.alts = append(e.alts, one)
	}
	return e, end + 1, nil
}

// parseOctet reads two digits of which either may be a question mark.
func (p *pattern) parseOctet(s string) (octet, error) {
	var o octet
	digits := []byte(s)
	for i := range digits {
		o.mask <<= 4
		if digits[i] == '?' {
			digits[i] = '0'
		} else {
			o.mask |= 0xF
		}
	}
	v, err := hex.DecodeString(string(digits))
	if err != nil {
		return o, fmt.Errorf("%q is neither hexadecimal nor a wildcard", s)
	}
	o.val = v[0]
	if p.fold && o.mask == 0xFF {
		o.val = lower(o.val)
	}
	return o, nil
}

func lower(c byte) byte {
	if c >= 'A' && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}

// choose picks what the matcher looks for: in the longest run of fixed octets, the stretch with the most different
// ones, since a run of zeros or blanks is a candidate everywhere.
func (g *segment) choose() bool {
	best := -1
	for ei, e := range g.elems {
		if len(e.alts) != 1 || e.not {
			continue
		}
		run := e.alts[0]
		for start := 0; start < len(run); {
			if run[start].mask != 0xFF {
				start++
				continue
			}
			end := start
			for end < len(run) && run[end].mask == 0xFF {
				end++
			}
			if size := windowSize(end - start); size > 0 {
				for at := start; at+size <= end; at++ {
					score := rarity(run[at : at+size])
					if score >= minRarity {
						score += size * 1000
					}
					if score > best {
						best = score
						g.anchor, g.offset = ei, at
						g.window = values(run[at : at+size])
					}
				}
			}
			start = end
		}
	}
	return best >= 0
}

// windowSize returns the length of window for a run of n octets: a few sizes only, so that few matchers are needed.
func windowSize(n int) int {
	for _, size := range windowSizes() {
		if n >= size {
			return size
		}
	}
	return 0
}

func windowSizes() [4]int { return [4]int{maxWindow, 8, 4, minWindow} }

func rarity(run []octet) int {
	var seen [256]bool
	n := 0
	for _, o := range run {
		if !seen[o.val] && o.val != 0 && o.val != ' ' && o.val != 0xFF {
			n++
		}
		seen[o.val] = true
	}
	return n
}

func values(run []octet) []byte {
	b := make([]byte, len(run))
	for i, o := range run {
		b[i] = o.val
	}
	return b
}
