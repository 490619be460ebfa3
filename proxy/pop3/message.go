package pop3

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"mailweir/inspect"
	"mailweir/inspect/spool"
	"mailweir/proxy/dot"
	"mailweir/proxy/smtpwire"
)

// topAll is more lines than a message has (P-061): what TOP brings then is the whole of it.
const topAll = "2147483647"

// retrieval is one message on its way to the client.
type retrieval struct {
	command
	source inspect.Body // what has been read so far
	saidOK bool         // the client has been given the first line of the reply
	said   []byte       // and these octets of the message
	due    time.Time    // when it gets more
	stuck  bool         // it gets no more before the verdict
}

// letter is a message as the server gave it, at rest.
type letter struct {
	status string      // the first line of the reply
	no     bool        // the reply is -ERR, and there is no message
	file   *spool.File // nil unless there is one
	info   *dot.Info
	sum    [sha256.Size]byte
	failed error // it could not be kept
}

// close gives everything back. It may be called on nil.
func (l *letter) close() {
	if l != nil && l.file != nil {
		l.file.Close()
	}
}

// sink is a spool file that remembers whether it was its fault.
type sink struct {
	*spool.File
	err error
}

// Write implements io.Writer.
func (w *sink) Write(p []byte) (int, error) {
	n, err := w.File.Write(p)
	w.err = err
	return n, err
}

// begins begins the retrieval of a message.
func (s *session) begins(c command) error {
	if err := s.settle(); err != nil {
		return err
	}
	s.messages++
	s.current = &retrieval{command: c, due: time.Now().Add(s.h.set.TrickleAfter)}
	return s.flushClient()
}

// retr serves a message as a whole.
func (s *session) retr(c command) (err error) {
	if err := s.begins(c); err != nil {
		return err
	}
	defer func() { s.current = nil }()
	var o *outcome
	defer func() { o.close() }()
	ahead := s.state.boxes[c.n] == nil && s.h.set.ReadBy == "Top" && s.state.login && !s.state.noTop
	if ahead {
		if o, err = s.readAhead(c.n); err != nil {
			return err
		}
		if o != nil && o.action == held {
			return s.hold(o)
		}
	}
	l, err := s.fetch("RETR " + strconv.Itoa(c.n))
	defer l.close()
	switch {
	case err != nil:
		return err
	case l.no:
		return s.refused(l.status)
	}
	s.state.noTop = s.state.noTop || ahead && o == nil
	if o == nil || o.sum != l.sum || !l.info.Exact() || o.dots != len(l.info.Missing) { // P-064: not what was judged
		o.close()
		if o, err = s.judge(l); err != nil {
			return err
		}
	}
	if o.action == held {
		return s.hold(o)
	}
	if err := s.remember(c.n, l, o); err != nil {
		return err
	}
	return s.serve(l, o)
}

// readAhead reads a message by TOP and has it judged. It returns nil when the server does not give it that way.
func (s *session) readAhead(n int) (*outcome, error) {
	l, err := s.fetch("TOP " + strconv.Itoa(n) + " " + topAll)
	defer l.close()
	if err != nil || l.no {
		return nil, err
	}
	return s.judge(l)
}

// hold tells the client that it cannot have the message now. Nothing else of the session suffers (P-044).
func (s *session) hold(o *outcome) error {
	return s.refused("-ERR [SYS/TEMP] " + o.text) // RFC 3206 §4
}

// refused gives the client a negative reply, if it has not been given a positive one before (P-085).
func (s *session) refused(reply string) error {
	if s.current.saidOK {
		return errCut
	}
	s.say(reply)
	return s.flushClient()
}

// fetch sends a command whose reply is a message and puts that into the spool.
func (s *session) fetch(cmd string) (*letter, error) {
	s.server.out = append(append(s.server.out, cmd...), '\r', '\n')
	if err := s.ask(); err != nil {
		return nil, err
	}
	text, positive, err := s.status()
	if err != nil {
		return nil, err
	}
	l := &letter{status: text, no: !positive}
	if l.no {
		return l, nil
	}
	return l, s.read(l)
}

// read reads a message to its strict end, whatever happens to it.
func (s *session) read(l *letter) error {
	l.file = s.h.spool.Create()
	s.patience = s.h.set.DataTimeout
	narrow := s.h.bulk.widen(s.server)
	defer func() { narrow(); s.patience = s.h.set.ReplyTimeout }()
	r := dot.NewReader(s.server.br)
	s.current.source, s.lone = l.file, r.Info()
	defer func() { s.lone = nil }()
	w := &sink{File: l.file}
	sum := sha256.New()
	_, err := r.WriteTo(io.MultiWriter(w, sum))
	if w.err != nil {
		l.failed = w.err
		s.log.Error("spool", "conn", s.c.ID, "error", w.err)
		l.file.Close()
		err = r.Drain()
	}
	if err != nil {
		l.close()
		if errors.Is(err, errClientGone) || errors.Is(err, errMalformed) {
			return s.fail(err)
		}
		return s.serverError(err)
	}
	sum.Sum(l.sum[:0])
	l.info = r.Info()
	return nil
}

// serve gives the client a message, or what replaces it.
func (s *session) serve(l *letter, o *outcome) error {
	body, missing := inspect.Body(l.file), l.info.Missing
	if o.action == replaced {
		body, missing = o.body, nil
	}
	return s.send(l.status, body, missing, o.action == replaced)
}

// send gives the client a reply with a message, less what it has got of it.
func (s *session) send(status string, body inspect.Body, missing []int64, ours bool) error {
	r := s.current
	said := int64(len(r.said))
	if same, err := begin(body, inspect.Bytes(r.said), said); err != nil || !same {
		return errors.Join(errCut, err)
	}
	if gone(s.client.raw) {
		return errClientGone
	}
	r.stuck = true // from here on it is the message that the client gets
	if !r.saidOK {
		if ours && r.verb == "RETR" {
			status = "+OK " + strconv.FormatInt(body.Size(), 10) + " octets"
		}
		s.say(status)
		r.saidOK = true
	}
	rest := make([]int64, len(missing))
	for i, off := range missing {
		rest[i] = off - said // no line that was trickled begins with a dot
	}
	s.release(true) // P-023: the client may take its time
	buf := s.h.bulk.buffers.Get().(*[bulkBuffer]byte)
	defer s.h.bulk.buffers.Put(buf)
	w := dot.NewWriter(s.client, rest)
	w.Buffer(buf[:])
	if _, err := w.ReadFrom(io.NewSectionReader(body, said, body.Size()-said)); err != nil {
		return s.sendFailed(err)
	}
	if err := w.Finish(false); err != nil {
		return s.sendFailed(err)
	}
	s.claim() // its end is noticed when it is needed next (P-036)
	return s.ctx.Err()
}

// sendFailed ends a session whose client has half a message: there is no way to say so but to close.
func (s *session) sendFailed(err error) error {
	if errors.Is(err, dot.ErrAmbiguous) || errors.Is(err, dot.ErrNoFinalCRLF) {
		return fmt.Errorf("%w: %w", errCut, err)
	}
	return fmt.Errorf("%w: %w", errClientGone, err)
}

// begin reports whether a begins with the first n octets of b.
func begin(a, b io.ReaderAt, n int64) (bool, error) {
	x, y := make([]byte, lineBuffer), make([]byte, lineBuffer)
	for at := int64(0); at < n; {
		k := int(min(n-at, lineBuffer))
		kx, err := a.ReadAt(x[:k], at)
		if err != nil && err != io.EOF {
			return false, err
		}
		ky, err := b.ReadAt(y[:k], at)
		if err != nil && err != io.EOF {
			return false, err
		}
		if kx != k || ky != k || string(x[:k]) != string(y[:k]) {
			return false, nil
		}
		at += int64(k)
	}
	return true, nil
}

// top serves the begin of a message.
func (s *session) top(c command) error {
	if err := s.begins(c); err != nil {
		return err
	}
	defer func() { s.current = nil }()
	if k := s.state.boxes[c.n]; k != nil && k.size >= 0 {
		return s.topOf(c) // this message was replaced
	}
	if c.k > 0 && s.state.login && !s.state.noTop {
		return s.topOf(c)
	}
	l, err := s.fetch(c.line)
	defer l.close()
	switch {
	case err != nil:
		return err
	case l.no: // P-063
		return s.refused(l.status)
	case l.failed != nil || !l.info.Exact() || !onlyHeader(l.file):
		if s.state.noTop || !s.state.login {
			return s.judged(l)
		}
		return s.topOf(c)
	}
	// P-060: a header has threats of its own, but its verdict says nothing about the message.
	if pass, err := s.headerPasses(l); err != nil || pass {
		if err != nil {
			return err
		}
		return s.send(l.status, l.file, l.info.Missing, false)
	}
	return s.topOf(c)
}

// topOf judges a message as a whole and serves the begin of it, or of what replaces it (P-061).
func (s *session) topOf(c command) error {
	whole, err := s.fetch("TOP " + strconv.Itoa(c.n) + " " + topAll)
	defer whole.close()
	switch {
	case err != nil:
		return err
	case whole.no:
		return s.refused(whole.status)
	}
	o, err := s.judge(whole)
	if err != nil {
		return err
	}
	defer o.close()
	if o.action == held {
		return s.hold(o)
	}
	if err := s.remember(c.n, whole, o); err != nil {
		return err
	}
	if o.action == replaced {
		end, err := topEnd(o.body, c.k)
		if err != nil {
			return errors.Join(errCut, err)
		}
		return s.send(whole.status, section{io.NewSectionReader(o.body, 0, end)}, nil, true)
	}
	part, err := s.fetch(c.line)
	defer part.close()
	switch {
	case err != nil:
		return err
	case part.no:
		return s.refused(part.status)
	case part.failed == nil && part.info.Exact() && part.file.Size() <= whole.file.Size():
		if same, err := begin(whole.file, part.file, part.file.Size()); err == nil && same {
			return s.send(part.status, part.file, part.info.Missing, false)
		}
	}
	return s.judged(part) // not the begin of what was judged: a message of its own
}

// judged serves what came for TOP as it is judged by itself.
func (s *session) judged(l *letter) error {
	o, err := s.judge(l)
	if err != nil {
		return err
	}
	defer o.close()
	if o.action == held {
		return s.hold(o)
	}
	return s.serve(l, o)
}

// section is a Body that is a part of another.
type section struct{ *io.SectionReader }

// topEnd returns where the first k lines of a message's body end (RFC 1939 §7, P-066).
func topEnd(body inspect.Body, k int) (int64, error) {
	br := s64(body)
	var at int64
	header := true
	for header || k > 0 {
		l, err := smtpwire.ReadLine(br, smtpwire.MaxSwallow)
		if at += int64(l.Size); err != nil {
			if err == io.EOF || err == io.ErrUnexpectedEOF {
				return body.Size(), nil
			}
			if !errors.Is(err, smtpwire.ErrEndless) {
				return 0, err
			}
			continue // the rest of that line is read as more of them
		}
		switch {
		case header:
			header = len(l.Text) > 0 || l.Overlong
		default:
			k--
		}
	}
	return at, nil
}

// onlyHeader reports whether a message ends with its header.
func onlyHeader(body inspect.Body) bool {
	end, err := topEnd(body, 0)
	return err == nil && end == body.Size()
}
