package pop3

import (
	"bufio"
	"context"
	"errors"
	"io"
	"strconv"
	"time"

	"mailweir/inspect"
	"mailweir/inspect/spool"
	"mailweir/proxy/dot"
)

// action is what is done with a message.
type action uint8

const (
	held     action = iota // not now; it stays on the server
	passed                 // as it is
	replaced               // by outcome.body
)

// outcome is a verdict as far as a reader of mail sees it.
type outcome struct {
	action action
	body   inspect.Body
	file   *spool.File // of body, if it is there
	text   string      // of held: why
	sum    [32]byte    // of what was judged
	dots   int         // and how many dots that should have been doubled it had
}

// close gives everything back. It may be called on nil and more than once.
func (o *outcome) close() {
	if o != nil && o.file != nil {
		o.file.Close()
		o.file = nil
	}
}

// seen is what a session knows of a message that it has judged.
type seen struct {
	sum      [32]byte
	original int64 // its size as the server tells it
	size     int64 // of what replaces it; negative: nothing does
}

func s64(body inspect.Body) *bufio.Reader {
	return bufio.NewReaderSize(inspect.Reader(body), lineBuffer*4)
}

// framing is the finding that a careless client would end the message early and take the rest for replies (P-032).
func framing(info *dot.Info) []inspect.Finding {
	if info.Exact() {
		return nil
	}
	return []inspect.Finding{{Kind: inspect.Threat, Name: "Framing.EndOfMessage", Category: inspect.KnownVirus, Engine: "pop3",
		Detail: "the message holds a sequence like its end; careless clients take what follows for replies of the server"}}
}

// judge has a message judged.
func (s *session) judge(l *letter) (*outcome, error) {
	if l.failed != nil {
		s.recordFailure(l)
		return &outcome{text: "message cannot be stored for inspection, try again later"}, nil
	}
	key := memoryKey{server: s.c.Server, user: s.state.user, sum: l.sum}
	plain := l.info.Exact() && len(l.info.Missing) == 0 && l.info.NUL == 0 && len(l.info.Loose) == 0
	if plain {
		if o := s.h.memory.outcome(key); o != nil {
			o.sum = l.sum
			return o, nil
		}
	}
	m, err := s.message(l)
	if err != nil {
		s.log.Error("read message", "conn", s.c.ID, "error", err)
		return &outcome{text: "message cannot be inspected now, try again later"}, nil
	}
	m.Findings = framing(l.info)
	v, lost := s.scan(m)
	defer v.Done()
	if s.ctx.Err() != nil {
		return nil, s.ctx.Err()
	}
	o := s.carryOut(m, l, &v)
	o.sum, o.dots = l.sum, len(l.info.Missing)
	s.recordMessage(m, o, &v)
	if plain && v.Err == nil {
		s.h.memory.keep(key, o)
	}
	if lost != nil {
		o.close()
		return nil, lost
	}
	return o, nil
}

// message makes a message of what the server gave.
func (s *session) message(l *letter) (*inspect.Message, error) {
	m := &inspect.Message{
		ID:   s.c.ID + "-" + strconv.Itoa(s.messages),
		Door: inspect.DoorPOP3,
		Session: inspect.Session{
			Conn: s.c.ID, Client: s.c.Client, Server: s.c.Server, Divert: s.c.Divert, Proc: s.c.Proc,
			User: s.state.user, TLS: s.state.tls, SNI: s.state.sni,
		},
		Body: l.file,
	}
	if v := l.info.DotsKept(l.file); v != nil {
		m.Views = append(m.Views, v)
	}
	if v := l.info.LooseDotsRemoved(l.file); v != nil {
		m.Views = append(m.Views, v)
	}
	v, err := l.info.NULsRemoved(l.file)
	if v != nil {
		m.Views = append(m.Views, v)
	}
	return m, err
}

// scan asks for the verdict, and keeps both ends waiting meanwhile. When the client leaves, the verdict is still waited
// for, so that it is known when the client comes back (P-084); lost says that it has left.
func (s *session) scan(m *inspect.Message) (v inspect.Verdict, lost error) {
	ctx, cancel := context.WithTimeout(s.ctx, s.h.set.ScanBudget)
	defer cancel()
	s.release(true)
	var fault any
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() { fault = recover() }()
		v = s.h.scanner.Scan(ctx, m)
	}()
	for {
		t := time.NewTimer(s.untilTrickle())
		select {
		case <-t.C:
			if lost == nil {
				if lost = s.stillThere(); lost != nil {
					s.server.raw.Close() // P-037: without QUIT
				}
			}
			continue
		case <-done:
			t.Stop()
		}
		s.claim() // its end is noticed when it is needed next (P-036)
		if fault != nil {
			panic(fault) // one place recovers and reports: proxy.Server
		}
		return v, lost
	}
}

// untilTrickle returns how long to wait before the client is looked after.
func (s *session) untilTrickle() time.Duration {
	d := time.Second
	if r := s.current; !r.stuck {
		d = min(d, max(time.Until(r.due), time.Millisecond))
	}
	return d
}

// stillThere gives the client a sign of life when it is due, and says whether it has left.
func (s *session) stillThere() error {
	if gone(s.client.raw) {
		return errClientGone
	}
	if r := s.current; !r.stuck && !time.Now().Before(r.due) {
		return s.trickle(r)
	}
	return nil
}

// headerPasses has a header judged that came alone. Only a clean one says anything.
func (s *session) headerPasses(l *letter) (bool, error) {
	m, err := s.message(l)
	if err != nil {
		return false, nil
	}
	v, lost := s.scan(m)
	v.Done()
	if lost == nil {
		lost = s.ctx.Err()
	}
	return v.Action == inspect.Pass, lost
}

// carryOut makes of a verdict what the client gets.
func (s *session) carryOut(m *inspect.Message, l *letter, v *inspect.Verdict) *outcome {
	wait := &outcome{text: "message cannot be inspected now, try again later (" + m.ID + ")"}
	switch v.Action {
	case inspect.Pass:
		if l.info.Exact() {
			return &outcome{action: passed}
		}
		// Neither it nor a notice can be had: nobody has kept the original (P-040).
		return &outcome{text: "message cannot be read in one way, it stays on the server (" + m.ID + ")"}
	case inspect.Modify:
		o, err := s.modified(l, v)
		if err == nil {
			return o
		}
		s.log.Error("modify message", "msg", m.ID, "error", err)
		if !errors.Is(err, errUnfit) {
			return wait
		}
	case inspect.Defer:
		return wait
	}
	if v.Quarantine == "" { // P-039: a DELE that follows would lose it
		return &outcome{text: "message is held back, it stays on the server (" + m.ID + ")"}
	}
	o, err := s.noticed(m, l, v)
	if err != nil {
		s.log.Error("write notice", "msg", m.ID, "error", err)
		return wait
	}
	return o
}

// errUnfit is returned for edits that do not give a message that can be sent.
var errUnfit = errors.New("modified message cannot be sent by POP3")

// modified makes the message that the verdict's edits give.
func (s *session) modified(l *letter, v *inspect.Verdict) (*outcome, error) {
	r, _, err := v.Edits.Apply(l.file)
	if err != nil {
		return nil, err
	}
	return s.stored(r)
}

// stored puts a replacement into the spool, and makes sure that it can be sent.
func (s *session) stored(r io.Reader) (*outcome, error) {
	f := s.h.spool.Create()
	o := &outcome{action: replaced, body: f, file: f}
	buf := s.h.bulk.buffers.Get().(*[bulkBuffer]byte)
	defer s.h.bulk.buffers.Put(buf)
	_, err := io.CopyBuffer(struct{ io.Writer }{f}, struct{ io.Reader }{r}, buf[:])
	if err == nil && !endsInCRLF(f) {
		_, err = f.Write([]byte("\r\n"))
	}
	if err != nil {
		o.close()
		return nil, err
	}
	w := dot.NewWriter(io.Discard, nil)
	w.Buffer(buf[:])
	if _, err = w.ReadFrom(inspect.Reader(f)); err == nil {
		err = w.Finish(false)
	}
	if err != nil {
		o.close()
		return nil, errors.Join(errUnfit, err)
	}
	return o, nil
}

// endsInCRLF reports whether a message ends as it must be to be sent.
func endsInCRLF(b inspect.Body) bool {
	var tail [2]byte
	if b.Size() < 2 {
		return b.Size() == 0
	}
	n, _ := b.ReadAt(tail[:], b.Size()-2)
	return n == 2 && string(tail[:]) == "\r\n"
}
