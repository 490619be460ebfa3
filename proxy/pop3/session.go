package pop3

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync/atomic"
	"time"

	"mailweir/proxy"
	"mailweir/proxy/dot"
	"mailweir/proxy/smtpwire"
)

// maxKeepAlives bounds the NOOPs within one message.
const maxKeepAlives = 60

// Why a session ends. They are for switch statements and events, not for people.
var (
	errClosed      = errors.New("server closed the connection")
	errSaid        = errors.New("the last reply is on its way, close")
	errQuit        = errors.New("quit")
	errDraining    = errors.New("the gateway stops")
	errIdle        = errors.New("client idle for too long")
	errServerSlow  = errors.New("server did not reply in time")
	errUnsolicited = errors.New("reply without a command")
	errClientGone  = errors.New("client has gone")
	errNotPOP3     = errors.New("not POP3")
	errMalformed   = errors.New("malformed reply")
	errCut         = errors.New("message cannot be completed")
	errWoken       = errors.New("the server has something to say")
)

// session is one connection. Everything happens in Serve's goroutine; while that waits for the client, or keeps it
// busy, the server's leg is with the watcher, and comes back by claim. Nobody else reads or writes it meanwhile.
type session struct {
	h      *Handler
	ctx    context.Context
	c      *proxy.Conn
	log    *slog.Logger
	client *leg
	server *leg
	began  time.Time

	mine     bool          // the server's leg is here, not with the watcher
	down     error         // why it is of no use any more
	patience time.Duration // how long to wait for it
	lend     chan bool     // to the watcher; true: keep the server awake
	back     chan watched
	claiming atomic.Bool // the watcher is to give the leg back
	spoke    atomic.Bool // the watcher has something to tell
	idle     atomic.Bool // a command is being waited for, and nothing would be lost by ending here
	draining atomic.Bool

	fifo     []pending
	state    dialogue
	opening  time.Duration // limit for the first octets, on ports where TLS starts at once
	badVerbs int
	messages int
	current  *retrieval // a message is under way
	lone     *dot.Info  // it is being read
	toldOf   map[string]bool
	linger   bool // the client may still be talking while it should read our last word
	reason   string
}

// dialogue is what commands have established. TLS begins it anew.
type dialogue struct {
	user       string
	login      bool
	tls        bool
	verified   bool
	sni        string
	mechanisms []string // as the server lists them
	noTop      bool     // it has no TOP
	boxes      map[int]*seen
	deleted    map[int]bool
}

// watched is what the watcher has seen.
type watched struct {
	err   error
	owed  int // replies to its NOOPs that are still to come
	noops int
}

func newSession(ctx context.Context, h *Handler, c *proxy.Conn, server net.Conn) *session {
	s := &session{h: h, ctx: ctx, c: c, log: h.log.With("conn", c.ID), mine: true, lend: make(chan bool, 1), back: make(chan watched, 1)}
	s.client, s.server = newLeg(ctx, c.Conn, h.set.DataTimeout), newLeg(ctx, server, h.set.DataTimeout)
	s.client.before, s.client.tick = s.beforeClient, s.clientTick
	s.server.before, s.server.tick = s.beforeServer, s.serverTick
	s.begin(dialogue{})
	return s
}

// begin makes the session's state that of a new dialogue.
func (s *session) begin(d dialogue) {
	d.boxes, d.deleted = map[int]*seen{}, map[int]bool{}
	s.state = d
}

// interrupt makes everything that waits return: the context has ended.
func (s *session) interrupt() {
	s.client.raw.SetDeadline(past)
	s.server.raw.SetDeadline(past)
}

// drain makes the session end at the next command boundary.
func (s *session) drain() {
	s.draining.Store(true)
	if s.idle.Load() {
		s.client.raw.SetReadDeadline(past) // clientTick sorts it out
	}
}

// mayDrain reports whether the session may be ended: what a client has deleted is deleted by its QUIT only, and it
// would get those messages again.
func (s *session) mayDrain() bool {
	return s.draining.Load() && len(s.state.deleted) == 0 && s.client.br.Buffered() == 0
}

// beforeClient runs before the client is waited for.
func (s *session) beforeClient(since time.Time) error {
	if s.down != nil {
		return s.down
	}
	if err := s.client.flush(); err != nil {
		return errors.Join(errClientGone, err)
	}
	s.release(false)
	s.client.raw.SetReadDeadline(s.clientDue(since))
	s.idle.Store(true)
	switch {
	case s.ctx.Err() != nil:
		return s.ctx.Err()
	case s.spoke.Load():
		return errWoken
	case s.mayDrain():
		return errDraining
	}
	return nil
}

func (s *session) clientDue(since time.Time) time.Time {
	if s.opening > 0 {
		return s.began.Add(s.opening)
	}
	return since.Add(s.h.set.IdleTimeout)
}

// clientTick runs when the deadline of the client's leg has passed.
func (s *session) clientTick(since time.Time) error {
	switch {
	case s.ctx.Err() != nil:
		return s.ctx.Err()
	case s.spoke.Load():
		return errWoken
	case s.mayDrain():
		return errDraining
	case time.Now().Before(s.clientDue(since)):
		return nil
	}
	return errIdle
}

// beforeServer runs before the server is waited for.
func (s *session) beforeServer(since time.Time) error {
	if err := s.client.flush(); err != nil { // what it has been waiting for does not wait for the next reply
		return errors.Join(errClientGone, err)
	}
	now, due := time.Now(), since.Add(s.patience)
	if r := s.current; r != nil && !r.stuck {
		if !now.Before(r.due) {
			if err := s.trickle(r); err != nil {
				return err
			}
		}
		if !r.stuck && r.due.Before(due) {
			due = r.due
		}
	}
	if s.loneDot() {
		due = since.Add(min(s.patience, s.h.set.LoneDotTimeout))
	}
	s.server.raw.SetReadDeadline(due)
	return s.ctx.Err()
}

// serverTick runs when the deadline of the server's leg has passed.
func (s *session) serverTick(since time.Time) error {
	if s.ctx.Err() != nil {
		return s.ctx.Err()
	}
	if waited := time.Since(since); waited >= s.patience {
		return errServerSlow
	} else if s.loneDot() && waited >= s.h.set.LoneDotTimeout {
		s.special("malformed-reply", "a lone dot without CRLF, and nothing behind it")
		return errMalformed
	}
	return nil
}

// loneDot reports whether the message being read holds what a careless server takes for its end (P-031).
func (s *session) loneDot() bool { return s.lone != nil && s.lone.EODLike > 0 }

// watch waits for the server when nobody else does, so that its end, or what it says out of turn, is noticed.
func (s *session) watch() {
	for awake := range s.lend {
		w := s.watchServer(awake)
		s.spoke.Store(true)
		if !s.claiming.Load() {
			s.client.raw.SetReadDeadline(past)
		}
		s.back <- w // the last thing: then the legs are the session's again
	}
}

// watchServer returns when the server has said something, has ended, or is claimed. With awake it keeps it from falling
// asleep meanwhile (RFC 1939 §3: autologout after ten minutes).
func (s *session) watchServer(awake bool) (w watched) {
	s.server.before, s.server.tick = nil, nil
	for {
		var due time.Time
		if awake && w.noops < maxKeepAlives {
			due = time.Now().Add(s.h.set.KeepAlive)
		}
		s.server.raw.SetReadDeadline(due)
		if s.claiming.Load() || s.ctx.Err() != nil {
			return w
		}
		err := s.server.lineWaits()
		switch {
		case err == nil && w.owed > 0:
			if w.err = s.swallow(); w.err != nil {
				return w
			}
			w.owed--
		case err == nil || err == bufio.ErrBufferFull:
			return w
		case !isTimeout(err):
			w.err = err
			return w
		case !awake || s.claiming.Load() || s.ctx.Err() != nil:
			if s.claiming.Load() || s.ctx.Err() != nil {
				return w
			}
		case w.owed == 0:
			w.owed, w.noops = 1, w.noops+1
			if _, err := s.server.Write([]byte("NOOP\r\n")); err != nil {
				w.err = err
				return w
			}
		}
	}
}

// swallow takes the reply to a NOOP of ours.
func (s *session) swallow() error {
	l, err := smtpwire.ReadLine(s.server.br, maxReplyLine)
	if err != nil {
		return err
	}
	if _, ok := statusOf(l); !ok {
		return errMalformed
	}
	return nil
}

// release lends the server's leg to the watcher.
func (s *session) release(awake bool) {
	if s.mine && s.down == nil {
		s.mine = false
		s.lend <- awake
	}
}

// claim takes the server's leg back. The error says that it is of no use any more.
func (s *session) claim() error {
	if s.mine {
		return s.down
	}
	s.claiming.Store(true)
	s.server.raw.SetReadDeadline(past)
	w := <-s.back
	s.mine = true
	s.claiming.Store(false)
	s.spoke.Store(false)
	s.server.before, s.server.tick = s.beforeServer, s.serverTick
	if w.err != nil {
		s.fail(w.err)
		return s.down
	}
	s.patience = s.h.set.ReplyTimeout
	for range w.owed {
		if err := s.swallow(); err != nil {
			return s.fail(err)
		}
	}
	return s.ctx.Err()
}

// endWatch ends the watcher.
func (s *session) endWatch() {
	if !s.mine {
		s.claiming.Store(true)
		s.server.raw.SetReadDeadline(past)
		<-s.back
		s.mine = true
	}
	close(s.lend)
}

// fail makes err the end of the server's leg and returns it.
func (s *session) fail(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		err = errClosed
	}
	if s.down == nil {
		s.down = err
	}
	return s.down
}
