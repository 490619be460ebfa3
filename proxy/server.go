package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"mailweir/inspect"
)

// Settings are the bounds of all doors together.
type Settings struct {
	MaxConnections          int `key:"MaxConnections" default:"None" none:"yes" min:"1" max:"10000000" doc:"Most connections at once. None: as many as the limit of open files allows."`
	MaxConnectionsPerSource int `key:"MaxConnectionsPerSource" default:"None" none:"yes" min:"1" max:"10000000" doc:"Most connections at once from one client address (IPv6: from one /64). None: half of MaxConnections."`
	MaxDialsPerSource       int `key:"MaxDialsPerSource" default:"256" min:"1" max:"1000000" doc:"Most connections to servers that may be in the making at once for one client address (IPv6: one /64); more wait."`
	ConnectionRatePerSource int `key:"ConnectionRatePerSource" default:"None" none:"yes" min:"1" max:"1000000" doc:"Most new connections a second from one client address (IPv6: one /64), with bursts of ten times as many. None: no such limit."`
}

// Config is what a Server needs.
type Config struct {
	Settings
	Handler Handler
	Log     *slog.Logger     // nil: none
	Events  inspect.Recorder // nil: none
	// Refuse tells the client of a connection above the limits so ("421 …"); the Server closes it afterwards. It has
	// a second, and may be nil.
	Refuse func(c *Conn)
}

// Listener is where connections come from.
type Listener interface {
	AcceptConn() (*Conn, error)
	Close() error
	Addr() net.Addr
}

// Stats are counters since the start, and the present state.
type Stats struct {
	Active        int    `json:"active"`
	Peak          int    `json:"peak"`
	Limit         int    `json:"limit"`
	Dialing       int    `json:"dialing"`
	Accepted      uint64 `json:"accepted"`
	Refused       uint64 `json:"refused"`        // above MaxConnections
	RefusedSource uint64 `json:"refused_source"` // above a limit of one source
	Gone          uint64 `json:"gone"`           // reset by the client before anything was done for it
	Dialed        uint64 `json:"dialed"`
	DialErrors    uint64 `json:"dial_errors"`
	AcceptErrors  uint64 `json:"accept_errors"`
	Panics        uint64 `json:"panics"`
	Draining      bool   `json:"draining"`
}

// Server accepts connections and runs a Handler for each. It bounds them, recovers their panics, closes what they
// leave open, and ends them in two stages.
type Server struct {
	conf     Config
	draining chan struct{} // closed by Drain: no new connections, end at the next good point
	ctx      context.Context
	cancel   context.CancelFunc
	wg       sync.WaitGroup // connections
	refusals chan struct{}  // bounds the goroutines that refuse

	mu        sync.Mutex
	listeners map[Listener]struct{}
	conns     map[*Conn]*sync.WaitGroup // and the call of Serve they belong to
	sources   map[netip.Prefix]*source
	swept     time.Time
	stats     Stats
}

// grace is how long handlers have to return once their legs have ended under them.
const grace = 10 * time.Second

// errStuck: a handler waits for something else than its legs and its context, which is a bug of its own.
var errStuck = errors.New("connections do not end though they were cut off")

// NewServer returns a Server. It raises the process's limit of open files as far as it may, since that bounds the
// number of connections.
func NewServer(conf Config) *Server {
	if conf.Log == nil {
		conf.Log = slog.New(slog.DiscardHandler)
	}
	if conf.Events == nil {
		conf.Events = inspect.Discarding
	}
	budget := connectionBudget(raiseOpenFiles())
	if conf.MaxConnections <= 0 {
		conf.MaxConnections = budget
	} else if conf.MaxConnections > budget {
		conf.Log.Warn("MaxConnections is more than the limit of open files allows", "wanted", conf.MaxConnections, "used", budget)
		conf.MaxConnections = budget
	}
	if conf.MaxConnectionsPerSource <= 0 {
		conf.MaxConnectionsPerSource = (conf.MaxConnections + 1) / 2
	}
	if conf.MaxDialsPerSource <= 0 {
		conf.MaxDialsPerSource = 256
	}
	s := &Server{
		conf:      conf,
		draining:  make(chan struct{}),
		refusals:  make(chan struct{}, 64),
		listeners: map[Listener]struct{}{},
		conns:     map[*Conn]*sync.WaitGroup{},
		sources:   map[netip.Prefix]*source{},
	}
	s.stats.Limit = conf.MaxConnections
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// Serve accepts connections from l until ctx ends, Drain is called or l fails, and closes l. It returns once the
// connections it accepted have ended: soon after ctx ended, as they like otherwise. The error is nil when the end was
// wanted.
func (s *Server) Serve(ctx context.Context, l Listener) error {
	if !s.addListener(l) {
		l.Close()
		return nil
	}
	defer s.removeListener(l)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	stopAll := context.AfterFunc(s.ctx, cancel)
	defer stopAll()

	var own sync.WaitGroup
	err := s.accept(ctx, l, &own)
	l.Close()
	done := make(chan struct{})
	go func() { own.Wait(); close(done) }()
	select {
	case <-done:
	case <-ctx.Done():
		if !s.expire(&own, done) && err == nil {
			err = errStuck
		}
	}
	return err
}

// accept is the loop of Serve.
func (s *Server) accept(ctx context.Context, l Listener, own *sync.WaitGroup) error {
	var pause time.Duration
	for {
		c, err := l.AcceptConn()
		if err != nil {
			switch {
			case ctx.Err() != nil || s.isDraining():
				return nil
			case isTemporary(err):
				// Out of files or memory: existing connections will end and give some back.
				pause = min(max(2*pause, 5*time.Millisecond), time.Second)
				s.count(func(st *Stats) { st.AcceptErrors++ })
				if pause == 5*time.Millisecond {
					s.conf.Log.Error("accept connection", "err", err)
				}
				select {
				case <-time.After(pause):
				case <-ctx.Done():
				case <-s.draining:
				}
				continue
			case errors.Is(err, syscall.ECONNABORTED), errors.Is(err, syscall.EPROTO):
				continue // the client changed its mind
			}
			return fmt.Errorf("accept connection: %w", err)
		}
		pause = 0
		s.start(ctx, c, own)
	}
}

// isTemporary reports whether accepting will work again later.
func isTemporary(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.ENOBUFS) ||
		errors.Is(err, syscall.ENOMEM)
}

// start runs the handler for c, or refuses c.
func (s *Server) start(ctx context.Context, c *Conn, own *sync.WaitGroup) {
	if c.ID == "" {
		c.ID = NewConnID()
	}
	if isReset(c.Conn) {
		s.count(func(st *Stats) { st.Accepted++; st.Gone++ })
		c.Close()
		return
	}
	why, ok := s.register(c, own)
	if !ok {
		s.refuse(c, why)
		return
	}
	own.Add(1)
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		defer own.Done()
		s.serve(ctx, c)
	}()
}

// serve runs the handler and cleans up behind it.
func (s *Server) serve(ctx context.Context, c *Conn) {
	defer func() {
		// House rule: this is the one recover of a connection. A panic must not become a success for either side:
		// both legs end without another octet.
		if p := recover(); p != nil {
			s.count(func(st *Stats) { st.Panics++ })
			s.conf.Log.Error("panic", "conn", c.ID, "panic", p, "stack", string(debug.Stack()))
			s.conf.Events.Record(inspect.Event{Event: "panic", Conn: c.ID, Client: c.Client.String(), Server: c.Server.String(), Divert: c.Divert, Detail: fmt.Sprint(p)})
		}
		c.legs.close()
		c.Close()
		s.unregister(c)
		if c.Release != nil {
			c.Release()
		}
	}()
	if t, ok := c.Conn.(*net.TCPConn); ok {
		t.SetNoDelay(true) // performance.md F4: a delayed ACK costs 44 ms
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.conf.Handler.Serve(ctx, s.draining, c)
}

// refuse ends a connection that cannot be served. It never waits for the client.
func (s *Server) refuse(c *Conn, why string) {
	s.conf.Events.Record(inspect.Event{Event: "refused", Conn: c.ID, Client: c.Client.String(), Server: c.Server.String(), Divert: c.Divert, Reason: why})
	done := func() {
		c.Close()
		if c.Release != nil {
			c.Release()
		}
	}
	select {
	case s.refusals <- struct{}{}:
	default: // too many at once to be polite
		Reset(c.Conn)
		done()
		return
	}
	if s.conf.Refuse == nil {
		<-s.refusals
		done()
		return
	}
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		defer func() { <-s.refusals }()
		defer done()
		c.SetDeadline(time.Now().Add(time.Second))
		s.conf.Refuse(c)
	}()
}

// Drain ends the Server. No connection is accepted any more, and handlers learn by their draining channel that they
// should come to an end; when ctx ends before all have, their contexts are cancelled and the deadlines of both legs
// put into the past. It returns nil when all connections ended by themselves.
func (s *Server) Drain(ctx context.Context) error {
	s.mu.Lock()
	if !s.stats.Draining {
		s.stats.Draining = true
		close(s.draining)
		for l := range s.listeners {
			l.Close()
		}
	}
	s.mu.Unlock()
	done := make(chan struct{})
	go func() { s.wg.Wait(); close(done) }()
	select {
	case <-done:
		s.cancel()
		return nil
	case <-ctx.Done():
	}
	left := s.Stats().Active
	s.cancel()
	if !s.expire(nil, done) {
		return fmt.Errorf("drain connections: %w", errStuck)
	}
	return fmt.Errorf("drain connections: %d cut off: %w", left, ctx.Err())
}

// expire puts the deadlines of the legs of one call of Serve (nil: of all) into the past, again and again, since
// handlers may set them anew, until done is closed. It gives up after the grace and returns false.
func (s *Server) expire(own *sync.WaitGroup, done <-chan struct{}) bool {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	over := time.NewTimer(grace)
	defer over.Stop()
	past := time.Unix(1, 0)
	for {
		s.mu.Lock()
		for c, of := range s.conns {
			if own == nil || of == own {
				c.SetDeadline(past)
				c.legs.deadline(past)
			}
		}
		s.mu.Unlock()
		select {
		case <-done:
			return true
		case <-over.C:
			return false
		case <-tick.C:
		}
	}
}

// Stats returns the counters.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stats
}

func (s *Server) count(f func(*Stats)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(&s.stats)
}

func (s *Server) isDraining() bool {
	select {
	case <-s.draining:
		return true
	default:
		return false
	}
}

func (s *Server) addListener(l Listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stats.Draining {
		return false
	}
	s.listeners[l] = struct{}{}
	return true
}

func (s *Server) removeListener(l Listener) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.listeners, l)
}
