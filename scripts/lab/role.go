package lab

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// Peer is a server or a client in a process of its own, so that it can be killed like one. A test's TestMain hands
// control to [PlayRole] first.
type Peer struct {
	cmd    *exec.Cmd
	in     io.WriteCloser
	lines  chan string
	closed sync.Once
}

// Script is what a peer is to do. It holds at a stage, or before a step, until it is told to go on.
type Script struct {
	Role   string // "server" or "client"
	Addr   string // where to listen, or whom to call
	Dir    string // server: where messages are stored, a file each
	HoldAt Stage  // server: hold here; client: hold before this step
	Bdat   bool   // client: send by BDAT
	To     string
	File   string // client: the content
}

const roleVariable = "MAILWEIR_LAB_ROLE"

// PlayRole makes this process the peer that [Namespace.Peer] asked for; otherwise it returns at once.
func PlayRole() {
	text := os.Getenv(roleVariable)
	if text == "" {
		return
	}
	var s Script
	err := json.Unmarshal([]byte(text), &s)
	if err == nil && s.Role == "server" {
		err = s.serve()
	} else if err == nil {
		err = s.call()
	}
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// Peer starts a peer in the namespace.
func (n *Namespace) Peer(ctx context.Context, s Script) (*Peer, error) {
	text, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find own program: %w", err)
	}
	p := &Peer{cmd: n.Command(ctx, self), lines: make(chan string, 64)}
	p.cmd.Env = append(os.Environ(), roleVariable+"="+string(text))
	p.cmd.Stderr = os.Stderr
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := n.Start(p.cmd); err != nil {
		return nil, fmt.Errorf("start peer: %w", err)
	}
	go func() {
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			p.lines <- lines.Text()
		}
		close(p.lines)
	}()
	return p, nil
}

// Await waits until the peer says word and returns the rest of that line.
func (p *Peer) Await(word string) (string, error) {
	limit := time.After(20 * time.Second)
	for {
		select {
		case line, ok := <-p.lines:
			if !ok {
				return "", fmt.Errorf("wait for %q: peer ended", word)
			}
			if first, rest, _ := strings.Cut(line, " "); first == word {
				return rest, nil
			} else if first == "error" {
				return "", fmt.Errorf("peer: %s", rest)
			}
		case <-limit:
			return "", fmt.Errorf("wait for %q: nothing came", word)
		}
	}
}

// Go lets a peer that holds go on.
func (p *Peer) Go() error {
	_, err := io.WriteString(p.in, "go\n")
	return err
}

// Kill ends the peer as kill -9 does.
func (p *Peer) Kill() {
	p.closed.Do(func() {
		_ = p.cmd.Process.Kill()
		for range p.lines {
		}
		_ = p.cmd.Wait()
	})
}

// hold says where we are and waits to be told to go on.
func hold(s Stage) error {
	fmt.Println("at", s)
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return fmt.Errorf("wait to go on: %w", err)
	}
	return nil
}

// serve is a strict server that stores each message durably before it says so.
func (s Script) serve() error {
	l, err := net.Listen("tcp", s.Addr)
	if err != nil {
		return err
	}
	sink := &Sink{Keep: s.keep}
	var once sync.Once
	sink.At = func(at Stage, _ net.Conn) (err error) {
		if at == s.HoldAt {
			once.Do(func() { err = hold(at) })
		}
		return err
	}
	sink.Serve(l)
	fmt.Println("listening")
	select {}
}

// keep writes a message into a file that appears whole or not at all.
func (s Script) keep(m Stored) error {
	f, err := os.CreateTemp(s.Dir, ".new-*")
	if err != nil {
		return err
	}
	defer f.Close()
	if err := json.NewEncoder(f).Encode(m); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return os.Rename(f.Name(), filepath.Join(s.Dir, strings.TrimPrefix(filepath.Base(f.Name()), ".")))
}

// StoredIn returns what a server peer stored.
func StoredIn(dir string) ([]Stored, error) {
	names, err := filepath.Glob(filepath.Join(dir, "new-*"))
	if err != nil {
		return nil, err
	}
	var all []Stored
	for _, n := range names {
		text, err := os.ReadFile(n)
		if err != nil {
			return nil, err
		}
		var m Stored
		if err := json.Unmarshal(text, &m); err != nil {
			return nil, fmt.Errorf("read %s: %w", n, err)
		}
		all = append(all, m)
	}
	return all, nil
}

// call sends one message and says how it went: "sent CODE".
func (s Script) call() error {
	content, err := os.ReadFile(s.File)
	if err != nil {
		return err
	}
	c, err := net.DialTimeout("tcp", s.Addr, 10*time.Second)
	if err != nil {
		return err
	}
	r, err := NewTalk(c).Deliver(content, s.To, s.Bdat, func(stage Stage) error {
		if stage == s.HoldAt {
			return hold(stage)
		}
		return nil
	})
	if err != nil {
		return err
	}
	fmt.Println("sent", r.Code)
	if s.HoldAt == AtDone {
		return hold(AtDone)
	}
	return nil
}
