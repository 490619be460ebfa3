// Package proxy is what every door shares: it accepts diverted connections, owns them, bounds them and ends them.
//
// A door is a [Handler]; it holds the conversation of one protocol and nothing else. Doors take connections and a
// [Dialer]; they do not know how the connection was diverted.
package proxy

import (
	"context"
	"net"
	"net/netip"
)

// Conn is one accepted connection. Its handler owns it and closes it.
type Conn struct {
	net.Conn                // the client's leg
	ID       string         // unique on this gateway, as in events
	Client   netip.AddrPort // the client's own address
	Server   netip.AddrPort // where the client meant to go
	Divert   string         // "input", "forward", "output"
	Proc     string         // local program behind an output connection, when known
	Implicit bool           // the port is one where TLS starts at once (465, 993, 995)
	Release  func()         // reserved for Server: gives back what the connection holds

	legs legs // server's legs, closed with the connection
}

// Handler holds the conversation of one connection.
type Handler interface {
	// Serve runs until the conversation has ended on both legs and closes c. When draining is closed it ends at the
	// next point where nothing is lost (for SMTP: the reply in progress, then 421). When ctx ends, deadlines of both
	// legs lie in the past and it returns at once. A panic is recovered by the Server.
	Serve(ctx context.Context, draining <-chan struct{}, c *Conn)
}

// Dialer opens the server's leg of c: from the client's address when so configured, marked so that it is never
// diverted again. An error wraps the cause (syscall.ECONNREFUSED …), which the handler passes on to the client as
// faithfully as TCP allows. The gateway wraps its Dialer by [Server.Dialer], so that the Server bounds the dials and
// knows of the leg.
type Dialer func(ctx context.Context, c *Conn) (net.Conn, error)
