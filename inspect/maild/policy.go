package maild

import (
	"fmt"
	"slices"
	"strings"

	"mailweir/inspect"
	"mailweir/inspect/mimetree"
)

// effect is what a finding asks for. They are in order of strength: the strongest that any finding asks for is done.
//
//   - Reject is final and the sender knows; it outweighs Discard, by which nobody but the quarantine would.
//   - Both outweigh TempFail: what is known is enough, and trying again would not change it.
//   - TempFail outweighs Repack: a threat was found, but the rest of the message was not looked at by everybody, and
//     the rest is what Repack would deliver.
type effect uint8

const (
	pass effect = iota
	doRepack
	tempFail
	discard
	reject
)

func effectOf(word string) (effect, error) {
	for i, w := range []string{"Pass", "Repack", "TempFail", "Discard", "Reject"} {
		if strings.EqualFold(w, word) {
			return effect(i), nil
		}
	}
	return pass, fmt.Errorf("action %q is not one of Repack, Reject, Discard, TempFail, Pass", word)
}

// row says what findings of a kind and some categories ask for.
type row struct {
	kind       string
	categories []string // none: all
	names      []string // none: all
	effect     effect
	reason     string // "…:category" is made of a reason that ends in a colon
}

// policy is the table that findings are looked up in: the first row that fits decides. What fits no row asks for
// nothing. There is nothing else that turns findings into actions; a rule language can take the place of the table.
type policy []row

func newPolicy(s Settings) (policy, error) {
	if s.MaxCompressionRatio < 2 {
		return nil, errRatio
	}
	var e [3]effect
	for i, w := range []string{s.ThreatAction, s.SpamAction, s.EngineFailure} {
		var err error
		if e[i], err = effectOf(w); err != nil {
			return nil, err
		}
	}
	unchecked := pass
	if s.BlockUnchecked {
		unchecked = reject
	}
	var blocked []string
	for _, b := range []struct {
		on         bool
		categories []string
	}{
		{s.BlockKnownVirus, []string{inspect.KnownVirus}},
		{s.BlockSuspicious, []string{inspect.VirusModification, inspect.UnknownVirus}},
		{s.BlockAdware, []string{inspect.Adware}},
		{s.BlockDialers, []string{inspect.Dialer}},
		{s.BlockJokes, []string{inspect.Joke}},
		{s.BlockRiskware, []string{inspect.Riskware}},
		{s.BlockHacktools, []string{inspect.Hacktool}},
	} {
		if b.on {
			blocked = append(blocked, b.categories...)
		}
	}
	p := policy{
		{inspect.Spam, nil, nil, e[1], "spam"},
		{inspect.Unchecked, []string{inspect.Unavailable, inspect.Timeout}, nil, e[2], "unchecked:"},
		// The bounds of the MIME parser are far beyond honest mail and nobody can set them. If what lies behind them
		// passed whenever BlockUnchecked is off, they would be the way past all engines.
		{inspect.Unchecked, nil, []string{mimetree.OddTooDeep, mimetree.OddTooManyParts, mimetree.OddTooManyFields,
			mimetree.OddHeaderTooLong}, reject, "unchecked:"},
		{inspect.Unchecked, nil, nil, unchecked, "unchecked:"},
	}
	if len(blocked) > 0 {
		p = append(p, row{inspect.Threat, blocked, nil, e[0], "threat"})
	}
	return append(p, row{inspect.Threat, nil, nil, pass, "threat"}), nil
}

// weigh returns what f asks for and the word for it. A finding that asks for nothing but must not be overlooked, such
// as something unchecked, has a reason too.
func (p policy) weigh(f *inspect.Finding) (effect, string) {
	for _, r := range p {
		if r.kind != f.Kind || !r.has(f.Category) || len(r.names) > 0 && !slices.Contains(r.names, f.Name) {
			continue
		}
		if strings.HasSuffix(r.reason, ":") {
			return r.effect, r.reason + f.Category
		}
		return r.effect, r.reason
	}
	return pass, ""
}

func (r *row) has(category string) bool {
	if len(r.categories) == 0 {
		return true
	}
	for _, c := range r.categories {
		if sameWord(c, category) {
			return true
		}
	}
	return false
}

// sameWord compares categories as all spellings of them in use ask for: "KnownVirus" is "known_virus".
func sameWord(a, b string) bool {
	return strings.EqualFold(strings.ReplaceAll(a, "_", ""), strings.ReplaceAll(b, "_", ""))
}

// reply returns what a door may say about a message that does not go on. It names no engine and no threat: that is the
// administrator's business, who finds it in the events by the id.
func reply(e effect, reason, id string) inspect.Reply {
	r := inspect.Reply{Code: 550, Enhanced: "5.7.1"} // RFC 3463 §3.8: delivery not authorized, message refused
	switch {
	case e == tempFail:
		r.Code, r.Enhanced, r.Text = 451, "4.7.1", "Message cannot be inspected at the moment, please try again later"
	case e != reject:
		return inspect.Reply{}
	case reason == "spam":
		r.Text = "Message refused as spam"
	case strings.HasPrefix(reason, "unchecked:"):
		r.Text = "Message refused because it cannot be inspected"
	default:
		r.Text = "Message refused because it contains a threat"
	}
	if id != "" {
		r.Text += " (" + id + ")"
	}
	return r
}
