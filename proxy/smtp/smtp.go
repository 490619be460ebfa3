// Package smtp is the door for SMTP, submission and LMTP: it holds the conversation between an unmodified client and an
// unmodified server, whose connection was diverted to it, and has every message judged before the server gets it.
//
// Commands and replies are passed on as they come, paired by one queue. Content is different: the gateway takes it
// itself, whole, into the spool, asks inspect.Scanner for the verdict, and only then gives it to the server by a DATA
// or BDAT of its own, whose reply goes to the client word for word. A message that is not to pass is answered here,
// and the server sees a RSET; the session stays usable. No message is accepted here unless the server has accepted it
// (or the verdict says Discard), and nothing is ever sent twice.
//
// Only what can be read in exactly one way is passed on. Commands, parameters and capabilities are allowlists; what is
// not on them is refused here and hidden from the EHLO reply. The end of data is CRLF.CRLF and nothing else.
//
// Limits: two goroutines a session, one line buffer of 4 KiB for each side, 1000 outstanding commands, command lines
// of 64 KiB at most, replies of 512 lines. Memory does not depend on the size of messages: they are in the spool.
package smtp

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"time"

	"mailweir/inspect"
	"mailweir/inspect/spool"
	"mailweir/proxy"
	"mailweir/tlsunwrap"
)

// Config is what the gateway wires in.
type Config struct {
	Settings
	Dial    proxy.Dialer         // opens the server's leg
	Next    Next                 // where mail goes; nil: to the server the client meant, by Dial
	Scanner inspect.Scanner      // judges messages
	Spool   *spool.Pool          // holds them meanwhile
	TLS     *tlsunwrap.Unwrapper // nil: TLS is not opened; such sessions are passed through uninspected (UnwrapSsl No)
	Events  inspect.Recorder     // nil: nobody listens
	Log     *slog.Logger         // nil: silent
}

// Next is where a session's mail goes on to. The transparent door goes to the server that the client meant; a filter
// or a receiver can have another idea without the conversation being any different.
type Next interface {
	// Open returns the server's leg of c. An error that wraps ECONNREFUSED or the like is passed on to the client as
	// a reset.
	Open(ctx context.Context, c *proxy.Conn) (net.Conn, error)
}

// dialNext is the transparent Next.
type dialNext struct{ dial proxy.Dialer }

// Open implements Next.
func (d dialNext) Open(ctx context.Context, c *proxy.Conn) (net.Conn, error) { return d.dial(ctx, c) }

// Handler is a proxy.Handler for SMTP. It is safe for concurrent use.
type Handler struct {
	set     Settings
	next    Next
	scanner inspect.Scanner
	spool   *spool.Pool
	tls     *tlsunwrap.Unwrapper
	events  inspect.Recorder
	log     *slog.Logger
	bulk    *bulk

	tunnel, requireTLS, xclient peers

	mu     sync.Mutex
	drains map[<-chan struct{}]*drain
}

var _ proxy.Handler = (*Handler)(nil)

// New returns a Handler. Lists in the Settings that Settings.Check refuses are taken for empty.
func New(cfg Config) *Handler {
	h := &Handler{
		set:     cfg.Settings.withDefaults(),
		next:    cfg.Next,
		scanner: cfg.Scanner,
		spool:   cfg.Spool,
		tls:     cfg.TLS,
		events:  cfg.Events,
		log:     cfg.Log,
		bulk:    newBulk(),
		drains:  map[<-chan struct{}]*drain{},
	}
	if h.next == nil {
		h.next = dialNext{cfg.Dial}
	}
	if h.events == nil {
		h.events = inspect.Discarding
	}
	if h.log == nil {
		h.log = slog.New(slog.DiscardHandler)
	}
	h.tunnel, _ = parsePeers(cfg.NotSmtpTunnel)
	h.requireTLS, _ = parsePeers(cfg.RequireTls)
	h.xclient, _ = parsePeers(cfg.XclientFrom)
	return h
}

// Serve implements proxy.Handler.
func (h *Handler) Serve(ctx context.Context, draining <-chan struct{}, c *proxy.Conn) {
	defer c.Close()
	began := time.Now()
	dialCtx, cancel := context.WithTimeout(ctx, h.set.DialTimeout)
	server, err := h.next.Open(dialCtx, c)
	cancel()
	if err != nil {
		h.unreachable(c, began, err)
		return
	}
	defer server.Close()

	s := newSession(ctx, h, c, server)
	s.began = began
	defer context.AfterFunc(ctx, s.interrupt)()
	defer h.watchDrain(draining, s)()

	var failed any
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			if failed = recover(); failed != nil {
				s.serverEnded(errPanic)
			}
		}()
		s.fromServer()
	}()
	func() {
		defer func() { s.endServer(); <-done }() // whatever happens, the other direction has ended first
		s.fromClient()
	}()
	s.mu.Lock()
	s.endTransaction()
	s.mu.Unlock()
	s.hangUp()
	s.recordConnection()
	if failed != nil {
		panic(failed) // one place recovers and reports: proxy.Server
	}
}

// unreachable tells the client, as faithfully as TCP allows, that the server cannot be reached (G-17).
func (h *Handler) unreachable(c *proxy.Conn, began time.Time, err error) {
	e := h.event("connection", c)
	e.Action, e.Reason, e.Detail = "Refused", "unreachable", err.Error()
	for _, no := range []error{syscall.ECONNREFUSED, syscall.ECONNRESET, syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.EACCES, syscall.EPERM} {
		if errors.Is(err, no) {
			proxy.Reset(c.Conn)
			break
		}
	}
	// Anything else is a time-out: the client sees a connection without a banner, and tries the next server.
	h.events.Record(e)
	h.log.Info("server unreachable", "conn", c.ID, "client", c.Client, "server", c.Server, "error", err, "after", time.Since(began).Round(time.Millisecond))
}
