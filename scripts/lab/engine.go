package lab

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Mood is how an [Engine] answers.
type Mood int

// The moods.
const (
	Fine    Mood = iota
	Hanging      // takes the object and says nothing
	Slow         // takes a second for each object
	Garbage      // answers what is no answer
	Finding      // finds a virus in everything
)

// Engine speaks clamd's protocol on a unix socket and misbehaves when told to.
type Engine struct {
	Path string

	mu      sync.Mutex
	mood    Mood
	entered chan struct{}
	conns   map[net.Conn]bool
	listen  net.Listener
	objects int
	gate    chan struct{} // answers wait for it
}

// NewEngine starts an engine.
func NewEngine(path string) (*Engine, error) {
	e := &Engine{Path: path, conns: map[net.Conn]bool{}, entered: make(chan struct{}, 1000)}
	return e, e.Start()
}

// Start listens, again after Crash.
func (e *Engine) Start() error {
	l, err := net.Listen("unix", e.Path)
	if err != nil {
		return fmt.Errorf("listen for the gateway: %w", err)
	}
	e.mu.Lock()
	e.listen = l
	e.mu.Unlock()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			e.mu.Lock()
			e.conns[c] = true
			e.mu.Unlock()
			go func() {
				e.serve(c)
				c.Close()
				e.mu.Lock()
				delete(e.conns, c)
				e.mu.Unlock()
			}()
		}
	}()
	return nil
}

// Crash ends everything at once, as a killed process does.
func (e *Engine) Crash() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.listen.Close()
	for c := range e.conns {
		c.Close()
	}
}

// Feel changes the mood for the objects to come.
func (e *Engine) Feel(m Mood) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.mood = m
	for len(e.entered) > 0 {
		<-e.entered
	}
}

// Gate has answers wait until Open.
func (e *Engine) Gate() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.gate = make(chan struct{})
}

// Open lets answers go.
func (e *Engine) Open() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.gate != nil {
		close(e.gate)
		e.gate = nil
	}
}

// Entered waits until an object has come since the mood was set.
func (e *Engine) Entered() error {
	select {
	case <-e.entered:
		return nil
	case <-time.After(15 * time.Second):
		return fmt.Errorf("the engine was given nothing")
	}
}

// Objects returns how many objects came.
func (e *Engine) Objects() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.objects
}

func (e *Engine) serve(c net.Conn) {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return
	}
	in := bufio.NewReaderSize(u, 1<<16)
	verb, err := in.ReadString(0)
	if err != nil {
		return
	}
	name := "stream"
	switch verb {
	case "zPING\x00":
		_, _ = io.WriteString(c, "PONG\x00")
		return
	case "zINSTREAM\x00":
		if !skipStream(in) {
			return
		}
	case "zFILDES\x00":
		name = "fd[10]"
		if in.Buffered() == 0 {
			takeDescriptor(u)
		}
	default:
		return
	}
	e.mu.Lock()
	mood, gate := e.mood, e.gate
	e.objects++
	e.mu.Unlock()
	select {
	case e.entered <- struct{}{}:
	default:
	}
	if gate != nil {
		<-gate
	}
	switch mood {
	case Fine:
		_, _ = io.WriteString(c, name+": OK\x00")
	case Hanging:
		_, _ = io.Copy(io.Discard, in)
	case Slow:
		time.Sleep(time.Second)
		_, _ = io.WriteString(c, name+": OK\x00")
	case Garbage:
		_, _ = io.WriteString(c, "\xff\xfe?? \n\x00")
	case Finding:
		_, _ = io.WriteString(c, name+": Lab.Test.Virus FOUND\x00")
	}
}

func skipStream(in *bufio.Reader) bool {
	for {
		var size [4]byte
		if _, err := io.ReadFull(in, size[:]); err != nil {
			return false
		}
		n := binary.BigEndian.Uint32(size[:])
		if n == 0 {
			return true
		}
		if _, err := io.CopyN(io.Discard, in, int64(n)); err != nil {
			return false
		}
	}
}

// takeDescriptor receives the file and closes it: this engine never looks.
func takeDescriptor(u *net.UnixConn) {
	oob := make([]byte, 64)
	_, n, _, _, err := u.ReadMsgUnix(make([]byte, 1), oob)
	if err != nil {
		return
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil {
		return
	}
	for _, m := range messages {
		if fds, err := unix.ParseUnixRights(&m); err == nil {
			for _, fd := range fds {
				_ = unix.Close(fd)
			}
		}
	}
}
