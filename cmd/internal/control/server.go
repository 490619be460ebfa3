package control

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"

	"mailweir/inspect"

	"golang.org/x/sys/unix"
)

const (
	maxConns   = 64
	maxRequest = 64 << 10
	writeTime  = 30 * time.Second
)

type credKey struct{}

// Serve answers requests on l until ctx ends, closes l and returns when the last answer was given.
func Serve(ctx context.Context, l net.Listener, ops Ops, log *slog.Logger) error {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	h := &handler{ops: ops}
	srv := &http.Server{
		Handler:           h.mux(),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		IdleTimeout:       30 * time.Second,
		MaxHeaderBytes:    8 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if lc, ok := c.(*limitedConn); ok {
				c = lc.Conn
			}
			cred, err := peer(c)
			if err != nil {
				cred = &unix.Ucred{Uid: ^uint32(0)} // nobody
			}
			return context.WithValue(ctx, credKey{}, cred)
		},
	}
	done := make(chan error, 1)
	go func() {
		done <- srv.Serve(&limited{Listener: l, free: make(chan struct{}, maxConns), closed: make(chan struct{})})
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	err := srv.Shutdown(stop)
	if err != nil {
		err = srv.Close()
	}
	if e := <-done; !errors.Is(e, http.ErrServerClosed) {
		err = errors.Join(err, e)
	}
	return err
}

// limited accepts at most maxConns connections at a time.
type limited struct {
	net.Listener
	free   chan struct{}
	closed chan struct{}
	once   sync.Once
}

func (l *limited) Accept() (net.Conn, error) {
	select {
	case l.free <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.free
		return nil, err
	}
	return &limitedConn{Conn: c, free: l.free}, nil
}

func (l *limited) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

type limitedConn struct {
	net.Conn
	free chan struct{}
	once sync.Once
}

func (c *limitedConn) Close() error {
	c.once.Do(func() { <-c.free })
	return c.Conn.Close()
}

// handler turns requests into calls of Ops.
type handler struct{ ops Ops }

func (h *handler) mux() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /version", func(w http.ResponseWriter, r *http.Request) {
		v, err := h.ops.Version(r.Context())
		answer(w, v, err)
	})
	mux.HandleFunc("GET /certificate", func(w http.ResponseWriter, r *http.Request) {
		pem, err := h.ops.Certificate(r.Context())
		answer(w, pem, err)
	})
	mux.HandleFunc("GET /stat", admin(func(w http.ResponseWriter, r *http.Request) {
		s, err := h.ops.Stat(r.Context())
		answer(w, s, err)
	}))
	mux.HandleFunc("POST /reload", admin(func(w http.ResponseWriter, r *http.Request) {
		a, err := h.ops.Reload(r.Context())
		answer(w, a, err)
	}))
	mux.HandleFunc("POST /set", admin(h.set))
	mux.HandleFunc("POST /divert/off", admin(func(w http.ResponseWriter, r *http.Request) {
		answer(w, struct{}{}, h.ops.DivertOff(r.Context()))
	}))
	mux.HandleFunc("GET /events", admin(h.events))
	return mux
}

// admin lets root and the gateway's own user pass, and nobody else.
func admin(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		cred, ok := r.Context().Value(credKey{}).(*unix.Ucred)
		if !ok || cred.Uid != 0 && int64(cred.Uid) != int64(os.Geteuid()) {
			failure(w, http.StatusForbidden, errors.New("only root and the gateway's own user may do this"))
			return
		}
		next(w, r)
	}
}

func (h *handler) set(w http.ResponseWriter, r *http.Request) {
	var c Change
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest))
	d.DisallowUnknownFields()
	if err := d.Decode(&c); err != nil {
		failure(w, http.StatusBadRequest, err)
		return
	}
	a, err := h.ops.Set(r.Context(), c)
	answer(w, a, err)
}

// events streams one JSON object a line. A client that does not read is dropped, not waited for.
func (h *handler) events(w http.ResponseWriter, r *http.Request) {
	last, err := strconv.Atoi(r.URL.Query().Get("last"))
	if err != nil || last < 0 {
		failure(w, http.StatusBadRequest, errors.New("last is not a number"))
		return
	}
	control := http.NewResponseController(w)
	q := Query{Last: last, Follow: r.URL.Query().Get("follow") == "yes"}
	w.Header().Set("Content-Type", "application/jsonl")
	if err := errors.Join(control.SetReadDeadline(time.Time{}), control.Flush()); err != nil {
		return
	}
	encode := json.NewEncoder(w)
	err = h.ops.Events(r.Context(), q, func(e inspect.Event) error {
		if err := control.SetWriteDeadline(time.Now().Add(writeTime)); err != nil {
			return err
		}
		if err := encode.Encode(e); err != nil {
			return err
		}
		return control.Flush()
	})
	if err != nil && r.Context().Err() == nil {
		panic(http.ErrAbortHandler) // the only way to tell the client that the stream is not whole
	}
}

func answer(w http.ResponseWriter, v any, err error) {
	if err != nil {
		failure(w, http.StatusUnprocessableEntity, err)
		return
	}
	reply(w, http.StatusOK, v)
}

func failure(w http.ResponseWriter, code int, err error) {
	reply(w, code, struct {
		Error string `json:"error"`
	}{err.Error()})
}

func reply(w http.ResponseWriter, code int, v any) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTime))
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	if err := json.NewEncoder(w).Encode(v); err != nil && !errors.Is(err, io.ErrClosedPipe) {
		return // the client has gone
	}
}
