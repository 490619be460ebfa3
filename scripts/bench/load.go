package main

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"sort"
	"sync"
	"time"

	"mailweir/scripts/lab"
	"mailweir/scripts/lab/corpus"
)

// job is what the load generator is asked to do. Kind is empty for a connection a message, "keep" for a thousand
// messages a connection, "connect" for banner and QUIT, "idle" to hold sessions until "release".
type job struct {
	Kind     string
	Port     int
	Sessions int
	Size     int
	TLS      string // "", "starttls", "implicit"
	Time     time.Duration
}

// result is what came of it.
type result struct {
	Done     int
	Rate     float64 // a second
	P50, P99 time.Duration
	CPU      time.Duration // of the gateway
	Error    string
}

// play is the other roles of this program.
func play(role string) error {
	switch role {
	case "load":
		return loader(os.Args[1])
	case "sink":
		return sink(os.Args[1], os.Args[2])
	case "relay":
		return relay(nil)
	case "tls-relay":
		return tlsRelay(os.Args[1], os.Args[2], os.Args[3])
	}
	return fmt.Errorf("unknown role %q", role)
}

// sink is the server: it takes everything and keeps nothing.
func sink(certFile, keyFile string) error {
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return err
	}
	cfg := &tls.Config{Certificates: []tls.Certificate{cert}}
	for port, s := range map[string]*lab.Sink{"25": {Forget: true}, "587": {Forget: true, TLS: cfg}, "465": {Forget: true, TLS: cfg, Implicit: true}} {
		l, err := net.Listen("tcp", ":"+port)
		if err != nil {
			return err
		}
		s.Serve(l)
	}
	select {}
}

// loader does jobs from its standard input, one a line, until it is closed.
func loader(caFile string) error {
	cfg, err := lab.ClientTLS(caFile)
	if err != nil {
		return err
	}
	g := &generator{tls: cfg}
	lines := bufio.NewReader(os.Stdin)
	out := json.NewEncoder(os.Stdout)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return nil
		}
		var j job
		if err := json.Unmarshal(line, &j); err != nil {
			return err
		}
		r, err := g.do(j)
		if err != nil {
			r.Error = err.Error()
		}
		if err := out.Encode(r); err != nil {
			return err
		}
	}
}

type generator struct {
	tls  *tls.Config
	held []*lab.Talk
}

func (g *generator) do(j job) (result, error) {
	switch j.Kind {
	case "idle":
		return g.idle(j)
	case "release":
		for _, t := range g.held {
			t.Reset()
		}
		g.held = nil
		return result{}, nil
	}
	var wire []byte
	if j.Size > 0 {
		wire = lab.Stuff(corpus.Big(j.Size, 1))
	}
	var mu sync.Mutex
	var took []time.Duration
	var failed error
	var running sync.WaitGroup
	begin := time.Now()
	end := begin.Add(j.Time)
	for range j.Sessions {
		running.Go(func() {
			var mine []time.Duration
			var err error
			for err == nil && time.Now().Before(end) {
				switch j.Kind {
				case "connect":
					var d time.Duration
					if d, err = g.visit(j); err == nil {
						mine = append(mine, d)
					}
				case "keep":
					err = g.keep(j, wire, end, &mine)
				default:
					start := time.Now()
					if err = g.one(j, wire); err == nil {
						mine = append(mine, time.Since(start))
					}
				}
			}
			mu.Lock()
			defer mu.Unlock()
			took = append(took, mine...)
			if err != nil {
				failed = err
			}
		})
	}
	running.Wait()
	elapsed := time.Since(begin)
	if failed != nil {
		return result{}, failed
	}
	sort.Slice(took, func(a, b int) bool { return took[a] < took[b] })
	r := result{Done: len(took), Rate: float64(len(took)) / elapsed.Seconds()}
	if len(took) > 0 {
		r.P50, r.P99 = took[len(took)/2], took[len(took)*99/100]
	}
	return r, nil
}

// open connects and, where TLS comes first, shakes hands.
func (g *generator) open(j job) (*lab.Talk, error) {
	c, err := net.Dial("tcp", lab.HostPort(lab.ServerIP4, j.Port))
	if err != nil {
		return nil, err
	}
	t := lab.NewTalk(c)
	if j.TLS == "implicit" {
		if err := t.Handshake(g.tls); err != nil {
			t.Close()
			return nil, err
		}
	}
	return t, nil
}

func (g *generator) visit(j job) (time.Duration, error) {
	start := time.Now()
	t, err := g.open(j)
	if err != nil {
		return 0, err
	}
	defer t.Close()
	if _, err := t.Reply(); err != nil {
		return 0, err
	}
	if err := t.Must(221, "QUIT"); err != nil {
		return 0, err
	}
	return time.Since(start), nil
}

func (g *generator) greeted(j job) (*lab.Talk, error) {
	t, err := g.open(j)
	if err != nil {
		return nil, err
	}
	err = t.Greet()
	if err == nil && j.TLS == "starttls" {
		if err = t.StartTLS(g.tls); err == nil {
			err = t.Must(250, "EHLO client.lab.example")
		}
	}
	if err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

// message sends one message, command by command, as most clients do.
func message(t *lab.Talk, wire []byte) error {
	if err := t.Envelope("a@client.example", "b@server.example"); err != nil {
		return err
	}
	if err := t.Must(354, "DATA"); err != nil {
		return err
	}
	if _, err := t.Write(wire); err != nil {
		return err
	}
	r, err := t.Reply()
	if err == nil && !r.Good() {
		err = fmt.Errorf("message refused: %s", r)
	}
	return err
}

func (g *generator) one(j job, wire []byte) error {
	t, err := g.greeted(j)
	if err != nil {
		return err
	}
	defer t.Close()
	if err := message(t, wire); err != nil {
		return err
	}
	return t.Must(221, "QUIT")
}

func (g *generator) keep(j job, wire []byte, end time.Time, took *[]time.Duration) error {
	t, err := g.greeted(j)
	if err != nil {
		return err
	}
	defer t.Close()
	for range 1000 {
		start := time.Now()
		if start.After(end) {
			break
		}
		if err := message(t, wire); err != nil {
			return err
		}
		*took = append(*took, time.Since(start))
	}
	return t.Must(221, "QUIT")
}

// idle opens sessions and keeps them; it tells how many came up.
func (g *generator) idle(j job) (result, error) {
	for range j.Sessions {
		t, err := g.greeted(j)
		if err != nil {
			return result{Done: len(g.held), Error: ""}, fmt.Errorf("session %d: %w", len(g.held)+1, err)
		}
		g.held = append(g.held, t)
	}
	return result{Done: len(g.held)}, nil
}
