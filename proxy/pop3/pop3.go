// Package pop3 is the door for POP3, with STLS and on ports where TLS starts at once: it holds the conversation between
// an unmodified client and an unmodified server, whose connection was diverted to it, and has every message judged
// before the client gets it.
//
// Commands and replies are passed on as they come, in batches as the client pipelines them. A message is different: the
// gateway reads it itself, whole, by a TOP of its own, which leaves no mark on the server, and asks inspect.Scanner for
// the verdict. Only when the client may have it, the client's own RETR goes to the server; what comes is compared with
// what was judged, and judged anew if it differs. A message that is not to pass is replaced: by the verdict's edits, or
// by a notice. There is no replacement unless the original is in the quarantine, so that a DELE that follows loses
// nothing; a message that can be neither passed nor replaced is answered by -ERR [SYS/TEMP] and stays on the server.
// LIST and STAT tell the sizes of replacements.
//
// Only what can be read in exactly one way is passed on. Commands and capabilities are allowlists, numbers of messages
// are digits and nothing else, and the end of a message is CRLF.CRLF and nothing else.
//
// While a judgement takes long the client is kept waiting by lines of the message's own header, up to the first that a
// replacement may change. Nothing of a body leaves before the verdict.
//
// Limits: three goroutines a session, one line buffer of 4 KiB for each side, 100 commands in a batch, command lines of
// 255 octets. Memory does not depend on the size of messages: they are in the spool; a session remembers some 100
// octets for each message that it has judged.
package pop3

import (
	"context"
	"errors"
	"log/slog"
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
	Scanner inspect.Scanner      // judges messages
	Spool   *spool.Pool          // holds them meanwhile
	TLS     *tlsunwrap.Unwrapper // nil: TLS is not opened; such sessions are passed through uninspected (UnwrapSsl No)
	Events  inspect.Recorder     // nil: nobody listens
	Log     *slog.Logger         // nil: silent
}

// Handler is a proxy.Handler for POP3. It is safe for concurrent use.
type Handler struct {
	set     Settings
	dial    proxy.Dialer
	scanner inspect.Scanner
	spool   *spool.Pool
	tls     *tlsunwrap.Unwrapper
	events  inspect.Recorder
	log     *slog.Logger
	bulk    *bulk
	memory  *memory

	tunnel, requireTLS proxy.Peers
}

var _ proxy.Handler = (*Handler)(nil)

// New returns a Handler. Lists in the Settings that Settings.Check refuses are taken for empty.
func New(cfg Config) *Handler {
	h := &Handler{
		set:     cfg.Settings.withDefaults(),
		dial:    cfg.Dial,
		scanner: cfg.Scanner,
		spool:   cfg.Spool,
		tls:     cfg.TLS,
		events:  cfg.Events,
		log:     cfg.Log,
		bulk:    newBulk(),
		memory:  newMemory(),
	}
	if h.events == nil {
		h.events = inspect.Discarding
	}
	if h.log == nil {
		h.log = slog.New(slog.DiscardHandler)
	}
	h.tunnel, _ = proxy.ParsePeers(cfg.NotPop3Tunnel)
	h.requireTLS, _ = proxy.ParsePeers(cfg.RequireTls)
	return h
}

// Serve implements proxy.Handler.
func (h *Handler) Serve(ctx context.Context, draining <-chan struct{}, c *proxy.Conn) {
	defer c.Close()
	began := time.Now()
	dialCtx, cancel := context.WithTimeout(ctx, h.set.DialTimeout)
	server, err := h.dial(dialCtx, c)
	cancel()
	if err != nil {
		h.unreachable(c, began, err)
		return
	}
	defer server.Close()

	s := newSession(ctx, h, c, server)
	s.began = began
	defer context.AfterFunc(ctx, s.interrupt)()
	over, done := make(chan struct{}), make(chan struct{}, 2)
	go func() {
		defer func() { done <- struct{}{} }()
		select {
		case <-draining:
			s.drain()
		case <-over:
		}
	}()
	go func() {
		defer func() { done <- struct{}{} }()
		s.watch()
	}()
	defer func() { // whatever happens, the others have ended first
		close(over)
		s.endWatch()
		<-done
		<-done
	}()
	s.goodbye(s.converse())
	s.recordConnection()
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
	h.events.Record(e)
	h.log.Info("server unreachable", "conn", c.ID, "client", c.Client, "server", c.Server, "error", err, "after", time.Since(began).Round(time.Millisecond))
}
