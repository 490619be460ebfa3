package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"strconv"
	"syscall"
	"time"

	"mailweir/inspect"
)

// Client asks the gateway whose control socket is at Path. It is an [Ops].
type Client struct{ Path string }

var _ Ops = Client{}

// Running says whether somebody answers on the socket.
func (c Client) Running(ctx context.Context) bool {
	conn, err := c.dial(ctx)
	if err != nil {
		return errors.Is(err, fs.ErrPermission)
	}
	conn.Close()
	return true
}

func (c Client) dial(ctx context.Context) (net.Conn, error) {
	d := net.Dialer{Timeout: 3 * time.Second}
	conn, err := d.DialContext(ctx, "unix", c.Path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil, fmt.Errorf("%w: nobody answers on %s", ErrNotRunning, c.Path)
	}
	return conn, err
}

// do sends a request and returns the body of a good answer.
func (c Client) do(ctx context.Context, method, path string, body any) (io.ReadCloser, error) {
	transport := &http.Transport{
		DialContext:           func(ctx context.Context, _, _ string) (net.Conn, error) { return c.dial(ctx) },
		DisableKeepAlives:     true,
		ResponseHeaderTimeout: 2 * time.Minute, // a change of the settings may wait for the kernel and for signature files
	}
	var r io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("encode request: %w", err)
		}
		r = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://control"+path, r)
	if err != nil {
		return nil, err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return nil, fmt.Errorf("ask gateway: %w", err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	var failed struct {
		Error string `json:"error"`
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxRequest)).Decode(&failed); err != nil || failed.Error == "" {
		return nil, fmt.Errorf("ask gateway: it answered %s", resp.Status)
	}
	return nil, errors.New(failed.Error)
}

func (c Client) ask(ctx context.Context, method, path string, body, into any) error {
	r, err := c.do(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer r.Close()
	if err := json.NewDecoder(r).Decode(into); err != nil {
		return fmt.Errorf("read answer of gateway: %w", err)
	}
	return nil
}

// Version implements Ops.
func (c Client) Version(ctx context.Context) (v Version, err error) {
	err = c.ask(ctx, http.MethodGet, "/version", nil, &v)
	return v, err
}

// Certificate implements Ops.
func (c Client) Certificate(ctx context.Context) (pem []byte, err error) {
	err = c.ask(ctx, http.MethodGet, "/certificate", nil, &pem)
	return pem, err
}

// Stat implements Ops.
func (c Client) Stat(ctx context.Context) (s Stat, err error) {
	err = c.ask(ctx, http.MethodGet, "/stat", nil, &s)
	return s, err
}

// Reload implements Ops.
func (c Client) Reload(ctx context.Context) (a Applied, err error) {
	err = c.ask(ctx, http.MethodPost, "/reload", nil, &a)
	return a, err
}

// Set implements Ops.
func (c Client) Set(ctx context.Context, change Change) (a Applied, err error) {
	err = c.ask(ctx, http.MethodPost, "/set", change, &a)
	return a, err
}

// DivertOff implements Ops.
func (c Client) DivertOff(ctx context.Context) error {
	return c.ask(ctx, http.MethodPost, "/divert/off", nil, &struct{}{})
}

// Events implements Ops.
func (c Client) Events(ctx context.Context, q Query, each func(inspect.Event) error) error {
	follow := "no"
	if q.Follow {
		follow = "yes"
	}
	r, err := c.do(ctx, http.MethodGet, "/events?last="+strconv.Itoa(q.Last)+"&follow="+follow, nil)
	if err != nil {
		return err
	}
	defer r.Close()
	d := json.NewDecoder(bufio.NewReader(r))
	for {
		var e inspect.Event
		err := d.Decode(&e)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("read events: the gateway has gone: %w", err)
		}
		if err := each(e); err != nil {
			return err
		}
	}
}
