package smtp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"mailweir/proxy"
	"mailweir/proxy/smtpwire"
)

// maxKeepAlives bounds the NOOPs within one message: servers count them (Postfix smtpd_junk_command_limit is 100).
const maxKeepAlives = 20

// Why a session ends. They are for switch statements and events, not for people.
var (
	errClosed      = errors.New("server closed the connection")
	errSaid        = errors.New("the last reply is on its way, close")
	errQuit        = errors.New("quit")
	errPanic       = errors.New("panic")
	errDraining    = errors.New("the gateway stops")
	errIdle        = errors.New("client idle for too long")
	errSlow        = errors.New("client too slow")
	errServerSlow  = errors.New("server did not reply in time")
	errEnded       = errors.New("session has ended")
	errUnsolicited = errors.New("reply without a command")
	errClientGone  = errors.New("client has gone")
	errNotSMTP     = errors.New("not SMTP")
	errServer421   = errors.New("server says goodbye")
)

// phase says whether the client may be spoken to at any time, and who writes to the server.
type phase uint8

const (
	phaseCommands phase = iota // replies flow as they come
	phaseContent               // a message arrives or is judged: the client reads nothing, the server is kept awake
	phaseReplay                // a message goes to the server, which should be silent
)

// The ways in which the server's direction pauses, so that somebody else may talk to the server's socket.
type park uint8

const (
	parkNone  park = iota
	parkAsked      // as soon as possible
	parkDone       // it pauses
)

// session is one connection. The client's direction (fromClient) runs in Serve's goroutine, the server's (fromServer)
// in one of its own. Whoever touches what is below mu holds it; the legs' readers belong to their directions, and the
// server's writer to the client's direction.
type session struct {
	h        *Handler
	ctx      context.Context
	c        *proxy.Conn
	log      *slog.Logger
	client   *leg
	server   *leg
	began    time.Time
	draining atomic.Bool

	mu           sync.Mutex
	cond         *sync.Cond // something below has changed
	fifo         queue
	phase        phase
	park         park
	parkTLS      *smtpwire.Reply // the 220 to STARTTLS for which the server's direction paused
	serverDue    time.Time
	noops        int
	down         error           // why the server's direction has ended
	last         *smtpwire.Reply // what the server said out of turn before that
	ended        bool            // the client's direction has ended
	greeted      bool
	greetingSent int             // octets of it that went to the client before it was complete
	serverBroken bool            // it cannot be written to
	leaving      bool            // the client has ended; what the server still says is waited for, not for long
	clientWaits  time.Time       // the client's deadline
	toldOf       map[string]bool // events that are recorded once a session
	tx           *transaction
	caps         capabilities
	state        dialogue

	// Of the client's direction alone.
	strictLF  bool // this client has sent something that looks like smuggling
	badVerbs  int
	boundary  bool // waiting for a command: nothing would be lost by ending here
	waitUntil time.Time
	opening   time.Duration // limit for the first octets, on ports where TLS starts at once
	auth      authExchange
	messages  int
	insists   bool   // the server has refused a message for being longer than declared
	asking    bool   // the server waits for content (DataMode AskFirst)
	abandon   bool   // nothing more may be said to the server
	resetOut  bool   // the client is to see a reset
	linger    bool   // the client may still be talking while it should read our last word
	reason    string // why the session has ended, for its event
}

// dialogue is what EHLO and what follows it have established. A new greeting or TLS begin it anew.
type dialogue struct {
	helo     string
	lmtp     bool
	user     string
	tls      bool
	verified bool // the server's certificate was verified
	sni      string
}

func newSession(ctx context.Context, h *Handler, c *proxy.Conn, server net.Conn) *session {
	s := &session{h: h, ctx: ctx, c: c, log: h.log.With("conn", c.ID)}
	s.client, s.server = newLeg(ctx, c.Conn, h.set.DataTimeout), newLeg(ctx, server, h.set.DataTimeout)
	s.cond = sync.NewCond(&s.mu)
	s.client.before, s.client.tick = s.beforeClient, s.clientTick
	s.server.before, s.server.tick = s.beforeServer, s.serverTick
	s.fifo.push(pending{kind: greetingReply}) // the greeting is the first thing that is owed
	return s
}

// interrupt makes everything that waits return: the context has ended.
func (s *session) interrupt() {
	s.client.raw.SetDeadline(past)
	s.server.raw.SetDeadline(past)
}

// drain makes the session end at the next command boundary.
func (s *session) drain() {
	s.draining.Store(true)
	s.client.raw.SetReadDeadline(past) // clientTick sorts it out
}

// beforeClient runs before the client's direction waits for octets.
func (s *session) beforeClient() error {
	if s.phaseNow() == phaseCommands {
		if err := s.server.flush(); err != nil {
			return s.serverWriteFailed(err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.client.flush(); err != nil {
		return err
	}
	if s.down != nil && s.phase == phaseCommands {
		return s.down
	}
	s.clientWaits = s.clientDue()
	s.client.raw.SetReadDeadline(s.clientWaits)
	if s.ctx.Err() != nil {
		return s.ctx.Err()
	}
	if s.boundary && s.draining.Load() {
		return errDraining
	}
	return nil
}

// clientDue returns until when the client may be silent.
func (s *session) clientDue() time.Time {
	now := time.Now()
	switch {
	case s.phase == phaseContent:
		due := now.Add(s.h.set.DataTimeout)
		if due.After(s.waitUntil) {
			due = s.waitUntil
		}
		return due
	case s.opening > 0:
		return s.began.Add(s.opening)
	}
	return now.Add(s.h.set.IdleTimeout)
}

// clientTick runs when the deadline of the client's leg has passed.
func (s *session) clientTick() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.ctx.Err() != nil:
		return s.ctx.Err()
	case s.phase == phaseContent:
		if time.Now().Before(s.clientWaits) {
			return nil // woken for a reason that has to wait
		}
		return errSlow
	case s.down != nil:
		return s.down
	case s.boundary && s.draining.Load():
		return errDraining
	case time.Now().Before(s.clientWaits):
		return nil
	}
	return errIdle
}

// beforeServer runs before the server's direction waits for octets.
func (s *session) beforeServer() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.client.flush(); err != nil {
		return fmt.Errorf("%w: %w", errClientGone, err)
	}
	s.armServer()
	return s.ctx.Err()
}

// serverTick runs when the deadline of the server's leg has passed.
func (s *session) serverTick() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.ctx.Err() != nil:
		return s.ctx.Err()
	case s.ended:
		return errEnded
	case s.park == parkAsked:
		s.pause()
		return nil
	case s.serverBroken:
		return errClosed
	case s.serverDue.IsZero() || time.Now().Before(s.serverDue):
		return nil // somebody has changed it meanwhile
	case s.fifo.len() > 0 || s.leaving:
		return errServerSlow
	case s.phase == phaseContent:
		// Nobody else writes to the server now: the client's direction changes the phase first.
		s.noops++
		s.fifo.push(pending{kind: noopReply})
		return s.server.write([]byte("NOOP\r\n"))
	}
	return nil
}

// pause stops the server's direction until park is taken back. s.mu is held.
func (s *session) pause() {
	s.park = parkDone
	s.cond.Broadcast()
	for s.park == parkDone && !s.ended {
		s.cond.Wait()
	}
}

// resume lets the server's direction go on.
func (s *session) resume() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.park = parkNone
	s.parkTLS = nil
	s.cond.Broadcast()
}

func (s *session) phaseNow() phase {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.phase
}

// enter changes the phase.
func (s *session) enter(p phase) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.phase, s.noops = p, 0
	s.armServer()
}

// serverWriteFailed finds out why the server cannot be written to: its own direction knows best, and may still have
// something to give to the client.
func (s *session) serverWriteFailed(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down == nil && s.ctx.Err() == nil {
		s.serverBroken = true
		s.armServer()
		for s.down == nil {
			s.cond.Wait()
		}
	}
	if s.down != nil {
		return s.down
	}
	return fmt.Errorf("write to server: %w", err)
}

// fromServer carries replies from the server to the client.
func (s *session) fromServer() {
	for {
		if err := s.nextReply(); err != nil {
			s.serverEnded(err)
			return
		}
	}
}

// nextReply reads one reply and gives it to whom it belongs.
func (s *session) nextReply() error {
	var onLine func([]byte) error
	if !s.greeted {
		first, err := s.server.br.Peek(1)
		if err != nil {
			return err
		}
		if first[0] < '2' || first[0] > '5' { // S-006, S-240
			return errNotSMTP
		}
		onLine = s.greetingLine // S-003
	}
	r, err := smtpwire.ReadReply(s.server.br, onLine)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fifo.len() == 0 {
		return s.outOfTurn(r)
	}
	return s.inTurn(s.fifo.first(), r)
}

// outOfTurn deals with a reply that no command has asked for. s.mu is held.
func (s *session) outOfTurn(r *smtpwire.Reply) error {
	if s.phase == phaseCommands && r.Code == 421 { // RFC 5321 §3.8: any time (S-015)
		s.client.out = append(s.client.out, r.Raw...)
		return errors.Join(s.client.flush(), errServer421)
	}
	if s.phase == phaseCommands || s.last != nil {
		s.special("unsolicited-reply", r.Text())
		return errUnsolicited
	}
	s.last = r // it is for the message under way: kept until the client can read it (S-174, S-175)
	if s.phase == phaseReplay && r.Code != 421 {
		s.cond.Broadcast()
		return nil
	}
	return errServer421
}

// serverEnded says that the server's direction is over, and why.
func (s *session) serverEnded(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == io.EOF {
		err = errClosed
	}
	s.down = err
	s.client.flush() // what it has said until then counts
	if s.phase == phaseCommands && s.tx != nil && s.tx.body != nil && !errors.Is(err, errClientGone) {
		s.phase = phaseContent // between chunks as within a message: the reply waits for the end of it (S-193)
	}
	if s.phase == phaseCommands {
		s.client.raw.SetReadDeadline(past)
	}
	s.cond.Broadcast()
}

// endServer makes the server's direction end.
func (s *session) endServer() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	s.server.raw.SetReadDeadline(past)
	s.cond.Broadcast()
}

// isReset reports whether err says that the peer has reset its connection.
func isReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// isTimeout reports whether err is a deadline that has passed.
func isTimeout(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }
