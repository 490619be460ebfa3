package maild

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"sync"

	"mailweir/inspect"
	"mailweir/inspect/mimetree"
	"mailweir/inspect/spool"
	"mailweir/inspect/unpack"
)

// maxFindings bounds what is reported about one message. All are weighed, also those beyond it.
const maxFindings = 500

// maxOddities bounds how often the same oddity is reported about one message.
const maxOddities = 20

// judge is one message being looked at.
type judge struct {
	d      *MailD
	ctx    context.Context
	m      *inspect.Message
	budget *unpack.Budget
	tree   *mimetree.Part // of m.Body

	findings  []inspect.Finding
	have      map[inspect.Finding]bool
	strongest effect
	reason    string
	errs      []error

	part     *mimetree.Part // the part of tree that is being looked at; nil: the message as a whole
	bad      []BadPart      // parts with something that is to be repacked
	view     bool           // something bad was found in another reading of the message
	inView   bool           // another reading is being looked at
	where    string         // path of what is being unpacked, for the budget's oddities
	seen     map[object]*inspected
	log      []inspect.Finding // everything found so far, for seen
	endless  bool              // a uuencoded file had no end in its part
	oddities map[string]int    // how often each was found
	quiet    bool              // what is odd or broken is no news: another model of line ends is being looked at
	late     bool              // the deadline has been noted
	sums     bool              // some engine uses Object.Sum
	depth    int               // objects around what is being looked at
	again    bool              // there are several readings: the same octets come again
}

// object is all that decides what is found in and below an object: what programs take it for depends on its name and
// type, and how deep it is looked into on where it lies.
type object struct {
	sum             [32]byte
	name, mediaType string
	level, messages int
}

// inspected is what was found in and below an object, so that the same octets are looked at once.
type inspected struct {
	path  string
	found []inspect.Finding
}

// judge looks at m.
func (d *MailD) judge(ctx context.Context, m *inspect.Message) *judge {
	j := &judge{d: d, ctx: ctx, m: m, sums: usesSums(d.cfg.Engines), again: len(m.Views) > 0}
	j.budget = unpack.NewBudget(d.cfg.limits(), ctx.Err, func(name, detail string) {
		j.unchecked(inspect.Ambiguous, name, j.where, detail)
	})
	j.budget.Buffers = &d.pools.unpack
	j.message()
	return j
}

// message looks at everything, the whole message first: headers, and what lies between parts, are octets too.
func (j *judge) message() {
	for _, f := range j.m.Findings {
		j.add(f)
	}
	j.safely("", func() { j.engines(&inspect.Object{Msg: j.m, Type: "message/rfc822", Body: j.m.Body}) })
	j.safely("", func() {
		// Parsing asks for no time: it is linear, at some hundred megabytes a second.
		j.tree = j.d.pools.mime.Parse(j.m.Body, j.m.Body.Size(), mimetree.Limits{})
		views := j.d.pools.mime.Views(j.m.Body, j.m.Body.Size())
		j.again = j.again || len(views) > 0
		for p := range j.tree.All() {
			j.again = j.again || len(p.Others) > 0 || len(p.Encodings) > 1
		}
		j.walk(j.tree, j.m.Body, "", 0, true)
		j.part = nil
		j.file()
		j.beyond()
		j.lineEnds(views)
	})
	j.part, j.inView = nil, true
	for i, view := range j.m.Views {
		path := fmt.Sprintf("view%d", i+1)
		j.safely(path, func() {
			j.engines(&inspect.Object{Msg: j.m, Path: path, Type: "message/rfc822", Body: view})
			j.walk(j.d.pools.mime.Parse(view, view.Size(), mimetree.Limits{}), view, path+"/", 0, false)
		})
	}
	j.onTime("")
}

// file looks into what is no mail but a file of its own, as mailweir scan may be given: the parser of mail might take
// the beginning of it for a header.
func (j *judge) file() {
	buf := j.d.pools.copies.Get().(*[copySize]byte)
	_, ok := unpack.Detect(head(j.m.Body, buf[:unpack.HeadSize]), "")
	j.d.pools.copies.Put(buf)
	if ok {
		st := j.section(j.m.Body, 0, j.m.Body.Size())
		defer st.close()
		j.object("file", "", "", st, 0)
	}
}

// safely calls f and turns a panic into an outcome.
//
// Elsewhere a panic is recovered in proxy.Server alone, and ends the connection. Here it may be hostile mail that has
// found a fault in a decoder, and a connection that ends is an outcome the sender gets for nothing, over and over. So
// the object counts as not looked at by an engine that failed (EngineFailure decides; never BlockUnchecked, whose
// default passes), everything else is still looked at, and the fault with its stack is in Verdict.Err.
func (j *judge) safely(path string, f func()) {
	defer func() {
		if r := recover(); r != nil {
			j.panicked(path, r, debug.Stack())
		}
	}()
	f()
}

func (j *judge) panicked(path string, r any, stack []byte) {
	j.errs = append(j.errs, fmt.Errorf("panic while inspecting %q of %s: %v\n%s", path, j.m.ID, r, stack))
	j.unchecked(inspect.Unavailable, "panic", path, "fault of the program while inspecting this object")
}

// onTime tells whether there is time left, and notes once when there is none.
func (j *judge) onTime(path string) bool {
	if j.ctx.Err() == nil {
		return true
	}
	if !j.late {
		j.late = true
		j.unchecked(inspect.Timeout, "ScanTimeout", path, "the rest of the message was not looked at")
		j.errs = append(j.errs, fmt.Errorf("inspect message: %w", j.ctx.Err()))
	}
	return false
}

// done tells whether looking further can change nothing: the message is refused for a threat.
func (j *judge) done() bool { return j.strongest == reject && j.reason == "threat" }

func (j *judge) unchecked(category, name, path, detail string) {
	j.add(inspect.Finding{Kind: inspect.Unchecked, Name: name, Category: category, Path: path, Detail: detail})
}

// add weighs and keeps a finding.
func (j *judge) add(f inspect.Finding) {
	if j.quiet && (f.Kind == inspect.Odd || f.Kind == inspect.Unchecked && (f.Category == inspect.Ambiguous || f.Category == inspect.Broken)) {
		return
	}
	if f.Kind == inspect.Threat && !j.d.cfg.HeuristicAnalysis &&
		(sameWord(f.Category, inspect.UnknownVirus) || sameWord(f.Category, inspect.VirusModification)) {
		f.Kind = inspect.Odd
	}
	if len(j.log) < maxFindings {
		j.log = append(j.log, f)
	}
	e, reason := j.d.policy.weigh(&f)
	if reason != "" && (j.reason == "" || e > j.strongest || e == j.strongest && f.Kind == inspect.Threat) {
		j.reason = reason
	}
	j.strongest = max(j.strongest, e)
	if e == doRepack {
		j.mark(f)
	}
	if f.Kind == inspect.Odd || f.Kind == inspect.Unchecked && f.Category == inspect.Ambiguous {
		// Of what is odd, and how, a few places are enough: there is room for what matters.
		if j.oddities == nil {
			j.oddities = map[string]int{}
		}
		if j.oddities[f.Name]++; j.oddities[f.Name] > maxOddities {
			return
		}
	}
	if len(j.findings) < maxFindings && !j.have[f] {
		if j.have == nil {
			j.have = map[inspect.Finding]bool{}
		}
		j.have[f] = true
		j.findings = append(j.findings, f)
	}
}

// mark remembers where something harmful is.
func (j *judge) mark(f inspect.Finding) {
	if j.part == nil {
		j.view = j.view || j.inView
		return
	}
	for i := range j.bad {
		if j.bad[i].Part == j.part {
			if len(j.bad[i].Findings) < maxFindings {
				j.bad[i].Findings = append(j.bad[i].Findings, f)
			}
			return
		}
	}
	j.bad = append(j.bad, BadPart{Part: j.part, Findings: []inspect.Finding{f}})
}

// engines has every engine look at o, side by side, and waits for all of them.
func (j *judge) engines(o *inspect.Object) {
	if o.Body.Size() == 0 || !j.onTime(o.Path) {
		return
	}
	answers := make([]answer, len(j.d.cfg.Engines))
	var wg sync.WaitGroup
	for i, e := range j.d.cfg.Engines {
		if i == len(answers)-1 { // one of them needs no goroutine
			answers[i] = ask(j.ctx, e, o)
			break
		}
		wg.Go(func() { answers[i] = ask(j.ctx, e, o) })
	}
	wg.Wait()
	for i, e := range j.d.cfg.Engines {
		j.answer(e.Name(), o, answers[i])
	}
}

// answer is what one engine said.
type answer struct {
	found []inspect.Finding
	err   error
	fault any // it panicked
	stack []byte
}

func ask(ctx context.Context, e inspect.Engine, o *inspect.Object) (a answer) {
	defer func() {
		if r := recover(); r != nil {
			a = answer{fault: r, stack: debug.Stack()}
		}
	}()
	a.found, a.err = e.Inspect(ctx, o)
	return a
}

func (j *judge) answer(engine string, o *inspect.Object, a answer) {
	if a.fault != nil {
		j.panicked(o.Path, a.fault, a.stack)
		return
	}
	for _, f := range a.found {
		if f.Engine == "" {
			f.Engine = engine
		}
		if f.Path == "" {
			f.Path = o.Path
		}
		j.add(f)
	}
	if a.err == nil {
		return
	}
	category := engineCategory(j.ctx, a.err)
	j.add(inspect.Finding{Kind: inspect.Unchecked, Name: category, Category: category, Path: o.Path, Engine: engine, Detail: brief(a.err)})
	if category == inspect.Unavailable || category == inspect.Timeout {
		if len(j.errs) < 10 { // an engine that is away says so for each object
			j.errs = append(j.errs, fmt.Errorf("engine %s: %w", engine, a.err))
		}
	}
}

// engineCategory tells why an engine did not look. An error without a category is the engine's own.
func engineCategory(ctx context.Context, err error) string {
	var f *inspect.Failure
	switch {
	case errors.As(err, &f) && f.Category != "":
		return f.Category
	case ctx.Err() != nil, errors.Is(err, context.DeadlineExceeded):
		return inspect.Timeout
	}
	return inspect.Unavailable
}

// failed notes why an object could not be taken apart.
func (j *judge) failed(path string, err error) {
	var limit *unpack.LimitError
	name, category := "", inspect.Broken
	switch {
	case errors.As(err, &limit):
		name, category = limit.Limit, inspect.Limits
	case errors.Is(err, unpack.ErrLimit):
		name, category = "limit", inspect.Limits
	case errors.Is(err, unpack.ErrEncrypted):
		name, category = "encrypted", inspect.Encrypted
	case errors.Is(err, spool.ErrTooLarge):
		name, category = "SpoolMaxMessage", inspect.Limits
	case j.ctx.Err() != nil:
		j.onTime(path)
		return
	case errors.Is(err, unpack.ErrUnsupported):
		name = "unsupported"
	case errors.Is(err, unpack.ErrBroken):
		name = "broken"
	default: // the spool is full, or cannot be read: our own fault, and not the mail's
		name, category = "spool", inspect.Unavailable
		j.errs = append(j.errs, fmt.Errorf("inspect %q: %w", path, err))
	}
	j.unchecked(category, name, path, brief(err))
}

// brief makes an error fit for a finding.
func brief(err error) string {
	s := err.Error()
	if i := strings.IndexByte(s, '\n'); i >= 0 {
		s = s[:i]
	}
	if len(s) > 300 {
		s = s[:300]
	}
	return strings.ToValidUTF8(s, "?")
}
