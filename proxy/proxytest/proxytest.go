// Package proxytest holds what tests of doors need: conversations in plain text files, fake servers, a fake client, a
// scanner that answers as told, and models of lenient servers.
//
// # Dialogues
//
// A file testdata/*.dlg holds one or more dialogues, separated by lines "---". Each is the script of a client (C) and a
// server (S) with the gateway between them, over real TCP connections of the loopback; [RunDialogues] runs each as a
// subtest. It begins with its title, "# S-105 pipelined commands after the dot", which names the rows of the
// specification that it shows; further lines with # and empty ones are comments. Steps happen in the order of the
// lines:
//
//	C> EHLO client.example      the client sends this line and CRLF
//	C>> abc\r\n                 the client sends these octets
//	C< 250 ok                   the next line for the client is this one, ended by CRLF
//	C<~ 250 .*queued.*          … matches this regular expression as a whole
//	C<< 250 ok\r\n              the next octets are these
//	C<* 250                     a whole reply of this code, of one or more lines
//	C<. text\r\n                a whole dot-terminated block, with these octets before the final dot
//	C silent                    nothing comes for a moment (C silent 200ms: for so long)
//	C eof / C reset / C gone    the connection ends: by FIN, by RST, either way
//	C close / C half / C rst    the client ends it: closes, closes its sending half, resets
//	C split 3                   from now on the client sends at most 3 octets at once
//
// and the same with S for the server. Lines to send that follow each other leave in one write, as a pipelining client
// does it. For the server also:
//
//	S refuses                   (anywhere) nobody listens at the server's address
//	S undialed                  the gateway has not connected to the server so far
//
// Texts know the escapes \r \n \t \0 \\ \s (blank) \xNN and \{1000:text} for repetition; regular expressions are as in
// package regexp. Further steps:
//
//	repeat 500 C> NOOP          a step many times
//	greet 8BITMIME, SIZE 1000   banner, EHLO and its reply with these keywords at the server; the client reads all
//	envelope a@x b@y c@z        MAIL and RCPT by the client, seen and accepted by the server
//	verdict reject 5.7.1 text   what the scanner answers from now on: pass, modify, reject, defer, discard;
//	                            also: verdict hang (until the context ends), verdict panic
//	verdict after 100ms         the scanner takes that long
//	scanned text\r\n            the next scanned message has this content; scanned~ regexp; scanned none
//	view text\r\n               one of the other views of the last scanned message has this content
//	event not-smtp              the gateway records this event (event~ regexp: against its JSON)
//	no-event clean              it has not recorded it so far
//	tls                         client and server shake hands through the gateway; tls fails: the client's does not
//	                            succeed (needs Env.ClientTLS and Env.ServerTLS)
//	drain / stop                the gateway begins to drain; its context ends
//	pause 20ms                  wait; only where a silence is the point
//	timeout 10s                 how long each further step may take (default 5s)
//	include greet.inc           steps from another file
//	vary SEQ \n.\n \r.\r        run the dialogue once for each value, in place of $SEQ
//	option NAME VALUE           for the test that makes the handler: Env.Options
//
// When the steps are over, both sides close, the handler must end, and the server must not have been sent anything
// that the dialogue does not show, QUIT and RSET excepted.
package proxytest

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"regexp"
	"sync"
	"time"

	"mailweir/inspect"
)

// Scanner is an inspect.Scanner that answers as told, and keeps what it was asked. The zero value passes everything.
type Scanner struct {
	mu      sync.Mutex
	verdict inspect.Verdict
	set     bool
	delay   time.Duration
	hang    bool
	panics  bool
	scanned []Scanned
	next    int
	began   chan struct{}
	edit    func(*inspect.Message) *inspect.Edits
}

// Scanned is a message as the scanner saw it.
type Scanned struct {
	Message inspect.Message // without its bodies, which are gone
	Content []byte
	Views   [][]byte
}

// Answer sets the verdict from now on.
func (s *Scanner) Answer(v inspect.Verdict) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.verdict, s.set, s.hang, s.panics = v, true, false, false
}

// Modify makes the scanner answer Modify with the edits that f returns.
func (s *Scanner) Modify(f func(*inspect.Message) *inspect.Edits) {
	s.Answer(inspect.Verdict{Action: inspect.Modify})
	s.mu.Lock()
	defer s.mu.Unlock()
	s.edit = f
}

// Delay sets how long a scan takes.
func (s *Scanner) Delay(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.delay = d
}

// Hang makes scans last until their context ends.
func (s *Scanner) Hang() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hang = true
}

// Panic makes scans panic.
func (s *Scanner) Panic() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.panics = true
}

// Scan implements inspect.Scanner.
func (s *Scanner) Scan(ctx context.Context, m *inspect.Message) inspect.Verdict {
	r := Scanned{Message: *m, Content: readBody(m.Body)}
	for _, v := range m.Views {
		r.Views = append(r.Views, readBody(v))
	}
	r.Message.Body, r.Message.Views = nil, nil
	s.mu.Lock()
	s.scanned = append(s.scanned, r)
	v, set, delay, hang, panics, edit := s.verdict, s.set, s.delay, s.hang, s.panics, s.edit
	if s.began != nil {
		close(s.began)
		s.began = nil
	}
	s.mu.Unlock()
	if panics {
		panic("scanner told to panic")
	}
	if hang {
		<-ctx.Done()
		return inspect.Verdict{Action: inspect.Defer, Err: ctx.Err()}
	}
	if delay > 0 {
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return inspect.Verdict{Action: inspect.Defer, Err: ctx.Err()}
		}
	}
	if !set {
		return inspect.Verdict{Action: inspect.Pass, Reason: "clean"}
	}
	if v.Action == inspect.Modify && edit != nil {
		v.Edits = edit(m)
	}
	return v
}

// Scanned returns the messages so far.
func (s *Scanner) Scanned() []Scanned {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Scanned(nil), s.scanned...)
}

// Began returns a channel that is closed when the next scan begins.
func (s *Scanner) Began() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.began == nil {
		s.began = make(chan struct{})
	}
	return s.began
}

// take returns the next message that was not taken yet.
func (s *Scanner) take() (Scanned, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.next >= len(s.scanned) {
		return Scanned{}, false
	}
	s.next++
	return s.scanned[s.next-1], true
}

func readBody(b inspect.Body) []byte {
	if b == nil {
		return nil
	}
	p, err := io.ReadAll(inspect.Reader(b))
	if err != nil {
		return append(p, "\n(read body: "+err.Error()+")"...)
	}
	return p
}

// Events is an inspect.Recorder that keeps what it is given.
type Events struct {
	mu   sync.Mutex
	list []inspect.Event
}

// Record implements inspect.Recorder.
func (e *Events) Record(x inspect.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.list = append(e.list, x)
}

// List returns the events so far.
func (e *Events) List() []inspect.Event {
	e.mu.Lock()
	defer e.mu.Unlock()
	return append([]inspect.Event(nil), e.list...)
}

// Has reports whether an event of that name was recorded.
func (e *Events) Has(name string) bool {
	for _, x := range e.List() {
		if x.Event == name {
			return true
		}
	}
	return false
}

// Match reports whether the JSON of an event matches.
func (e *Events) Match(re *regexp.Regexp) bool {
	for _, x := range e.List() {
		if b, err := json.Marshal(x); err == nil && re.Match(b) {
			return true
		}
	}
	return false
}

// JSON returns the events so far, one a line.
func (e *Events) JSON() string {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	for _, x := range e.List() {
		enc.Encode(x)
	}
	return b.String()
}
