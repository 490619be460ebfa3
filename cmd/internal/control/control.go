// Package control is how an administrator talks to the running gateway: [Ops] is what may be asked, [Serve] answers
// it on a UNIX socket, and [Client] is an Ops that asks there.
//
// The socket speaks HTTP with JSON bodies. Everybody on the host may connect, and the kernel says who it is
// (SO_PEERCRED): root and the gateway's own user may ask anything, others only for the version and the authority's
// public certificate. Two gateways never share a socket: the second one gets [ErrRunning]. A socket that a dead
// gateway left is replaced.
//
// Requests are at most 64 KB, at most 64 connections are open at once, and nobody who reads slowly holds anything but
// his own connection.
package control

import (
	"context"
	"errors"
	"time"

	"mailweir/cmd/internal/config"
	"mailweir/divert"
	"mailweir/inspect"
)

// Ops is what an administrator may ask of the running gateway.
type Ops interface {
	Version(ctx context.Context) (Version, error)
	Certificate(ctx context.Context) ([]byte, error) // PEM
	Stat(ctx context.Context) (Stat, error)
	// Reload reads the configuration file again and takes it over as a whole, or not at all.
	Reload(ctx context.Context) (Applied, error)
	// Set edits the configuration file and takes the result over, or leaves both as they were.
	Set(ctx context.Context, c Change) (Applied, error)
	// DivertOff removes every rule until the next reload, change or start.
	DivertOff(ctx context.Context) error
	// Events calls each with the last events and, if q.Follow, with each new one until ctx ends.
	Events(ctx context.Context, q Query, each func(inspect.Event) error) error
}

// Version says what program runs.
type Version struct {
	Version string `json:"version"`
	Commit  string `json:"commit,omitempty"`
	Go      string `json:"go"`
}

// Change is one cfset. Path is the configuration file that the caller means: a gateway that runs on another one
// refuses.
type Change struct {
	Path string      `json:"path"`
	Edit config.Edit `json:"edit"`
}

// Applied tells what became of a reload or a change.
type Applied struct {
	Notes []string `json:"notes,omitempty"` // for people: what takes effect only later, what is not diverted
}

// Query selects events.
type Query struct {
	Last   int  // this many of the past ones
	Follow bool // and then the new ones
}

// Stat is how the gateway does. The names of its JSON form are stable.
type Stat struct {
	Version     Version          `json:"version"`
	PID         int              `json:"pid"`
	Config      string           `json:"config"`
	Started     time.Time        `json:"started"`
	Loaded      time.Time        `json:"loaded"` // when the settings in force were read
	Reload      string           `json:"reload_error,omitempty"`
	Divert      Divert           `json:"divert"`
	Kernel      divert.Stat      `json:"kernel"`
	Connections Connections      `json:"connections"`
	Messages    map[string]int64 `json:"messages"` // by action: Pass, Modify, Reject, Discard, Defer
	Findings    map[string]int64 `json:"findings"` // by kind, with the category of unchecked ones: "unchecked:limits"
	Events      map[string]int64 `json:"events"`   // by name, e.g. "not-inspected", "starttls-injection"
	Spool       Spool            `json:"spool"`
	Engines     []Engine         `json:"engines"`
	EventLog    EventLog         `json:"event_log"`
}

// Divert is what is diverted at the moment.
type Divert struct {
	Active   bool      `json:"active"` // rules are in the kernel
	Input    []string  `json:"input"`
	Forward  []string  `json:"forward"`
	Output   []string  `json:"output"`
	FailMode string    `json:"fail_mode"`
	Skipped  []Skipped `json:"skipped,omitempty"` // asked for and not diverted
}

// Skipped is a port that the settings name and that is not diverted.
type Skipped struct {
	Port   uint16 `json:"port"`
	Reason string `json:"reason"`
}

// Connections counts them.
type Connections struct {
	Open    int64 `json:"open"`
	Total   int64 `json:"total"`
	Refused int64 `json:"refused"` // by MaxConnections and its like
	Panics  int64 `json:"panics"`
}

// Spool is what messages take that are being inspected.
type Spool struct {
	Files int   `json:"files"`
	Bytes int64 `json:"bytes"`
}

// Engine is one engine and how it does.
type Engine struct {
	Name   string `json:"name"`
	State  string `json:"state"`
	Detail string `json:"detail,omitempty"`
}

// EventLog tells about the file of events.
type EventLog struct {
	Path    string `json:"path"`
	Written int64  `json:"written"`
	Dropped int64  `json:"dropped"` // not written because the disk was slower than the mail
	Error   string `json:"error,omitempty"`
}

// ErrRunning is the reason why a second gateway does not start.
var ErrRunning = errors.New("another gateway is running")

// ErrNotRunning is what a [Client] returns when nobody answers on its socket.
var ErrNotRunning = errors.New("no gateway is running")
