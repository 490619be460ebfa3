// Package inspect is the vocabulary in which the doors of the gateway and its scanning core talk to each other.
//
// A door (package proxy/smtp, later POP3, IMAP, milter …) takes a message off the wire, puts its bytes at rest and
// calls [Scanner.Scan]; the answer is a [Verdict], which the door carries out and never weighs again. Doors do not
// import the core and the core does not import doors: they meet here and in cmd/internal/gateway.
//
// The package holds types and their small, pure methods, and nothing else: it opens no file and no socket.
package inspect

import (
	"bytes"
	"context"
	"io"
	"net/netip"
	"time"
)

// Door names the way by which a message reached the gateway.
type Door string

// The doors that exist. Later issues add to them.
const (
	DoorSMTP Door = "smtp"
	DoorPOP3 Door = "pop3"
	DoorFile Door = "file" // mailweir scan FILE
)

// Session is what is known of the connection that carries a message. The zero value is a message from nowhere.
type Session struct {
	Conn   string         // id of the connection, as in events
	Client netip.AddrPort // who connected
	Server netip.AddrPort // where the client meant to go
	Divert string         // "input", "forward", "output"; empty when the door was asked directly
	Helo   string         // argument of HELO, EHLO or LHLO
	User   string         // authenticated user, when known
	TLS    bool           // the client's leg is encrypted
	SNI    string         // server name the client asked for
	Proc   string         // path of the local program behind the connection (output divert), when known
}

// Envelope is the SMTP envelope of a message: addresses as written by the client, without angle brackets.
// From is empty for the null sender.
type Envelope struct {
	From string
	To   []string
}

// Body is a message, or a part of it, at rest. Reads do not change it and may run concurrently.
type Body interface {
	io.ReaderAt
	Size() int64
}

// Bytes is a Body in memory.
type Bytes []byte

// ReadAt implements io.ReaderAt.
func (b Bytes) ReadAt(p []byte, off int64) (int, error) { return bytes.NewReader(b).ReadAt(p, off) }

// Size returns the length of b in octets.
func (b Bytes) Size() int64 { return int64(len(b)) }

// Reader returns a reader over the whole of b.
func Reader(b Body) *io.SectionReader { return io.NewSectionReader(b, 0, b.Size()) }

// Message is one message as a door received it.
type Message struct {
	ID        string // unique on this gateway, as in events and replies
	Door      Door
	Session   Session
	Envelope  Envelope
	Body      Body   // the content, dot-unstuffed, octet for octet
	SizeLimit int64  // the most octets that the next server takes, as far as it is known; 0: no limit. For Modify
	Views     []Body // other readings that a receiver might make of the same wire octets; scanned like Body, never sent

	// Findings are what the door has noticed on the wire, where the scanner cannot look. They are weighed like its own.
	Findings []Finding
}

// Scanner judges messages.
type Scanner interface {
	// Scan judges m and returns what is to be done with it. It returns no error: failure is weighed once, inside, by
	// the configured policy. It is safe for concurrent use, ends soon after ctx does, and reads m.Body only while it
	// runs.
	Scan(ctx context.Context, m *Message) Verdict
}

// Action is what a door does with a message.
type Action uint8

// The actions. The zero value is Defer, so that a forgotten verdict never passes a message.
const (
	Defer   Action = iota // answer temporarily no; the sender tries again
	Pass                  // hand it on, octet for octet
	Modify                // hand it on with Verdict.Edits applied
	Reject                // answer permanently no
	Discard               // answer yes, hand nothing on; the message is durably in the quarantine
)

// String returns the word used in events and in scan --json.
func (a Action) String() string {
	switch a {
	case Pass:
		return "Pass"
	case Modify:
		return "Modify"
	case Reject:
		return "Reject"
	case Discard:
		return "Discard"
	}
	return "Defer"
}

// Reply is what a door that can say so tells the client. Zero fields leave the choice to the door.
type Reply struct {
	Code     int    // SMTP reply code, e.g. 550
	Enhanced string // RFC 3463 code, e.g. "5.7.1"
	Text     string // one line, printable ASCII
}

// Verdict is the outcome of Scan.
type Verdict struct {
	Action     Action
	Reply      Reply
	Edits      *Edits    // for Modify: what to change, against Message.Body as received
	Findings   []Finding // threats, links, spam, and every reason why something is unchecked
	Reason     string    // short word for events: "clean", "threat", "unchecked:encrypted", …
	Quarantine string    // id of the item that keeps the original, when one was made
	Err        error     // our own fault, already weighed into Action
	Close      func()    // releases what Edits holds; nil when there is nothing; the door calls it once it is done
}

// Done releases what the verdict holds. It may be called on any verdict, once.
func (v *Verdict) Done() {
	if v.Close != nil {
		v.Close()
		v.Close = nil
	}
}

// Finding kinds.
const (
	Threat    = "threat"
	Unchecked = "unchecked"
	Link      = "link"
	Spam      = "spam"
	Odd       = "odd"
)

// Categories of unchecked findings: why something was not looked into. None of them means clean.
const (
	Limits      = "limits"      // a configured limit was reached
	Encrypted   = "encrypted"   // needs a password or key that we do not have
	Timeout     = "timeout"     // ScanTimeout, or an engine's own
	Unavailable = "unavailable" // an engine did not answer
	Broken      = "broken"      // cannot be read
	Ambiguous   = "ambiguous"   // can be read in more than one way
)

// Threat categories (compare Block* settings). Matching ignores case and underscores.
const (
	KnownVirus        = "KnownVirus"
	VirusModification = "VirusModification"
	UnknownVirus      = "UnknownVirus"
	Adware            = "Adware"
	Dialer            = "Dialer"
	Joke              = "Joke"
	Riskware          = "Riskware"
	Hacktool          = "Hacktool"
)

// Finding is one thing that was noticed about a message.
type Finding struct {
	Kind     string `json:"kind"`               // Threat, Unchecked, Link, Spam, Odd
	Name     string `json:"name"`               // e.g. "EICAR-Test-File"
	Category string `json:"category,omitempty"` // see the constants above
	Path     string `json:"path,omitempty"`     // where: "2.1/invoice.zip/a.exe"; empty is the message itself
	Engine   string `json:"engine,omitempty"`   // who noticed
	Detail   string `json:"detail,omitempty"`   // for people
}

// Engine looks for threats in one object.
type Engine interface {
	// Name is short and stable: "builtin", "clamd".
	Name() string
	// Inspect returns what it found in o. An error means that o is unchecked by this engine, never that it is clean;
	// an error made with Failure says which category of unchecked. It is safe for concurrent use.
	Inspect(ctx context.Context, o *Object) ([]Finding, error)
}

// Object is what an engine is given: the whole message, or something that was found in it.
type Object struct {
	Msg  *Message
	Path string   // where it was found; empty for the whole message
	Name string   // file name, decoded, if it has one
	Type string   // media type, lower case, if known
	Sum  [32]byte // SHA-256 of Body; zero when it was not computed
	Body Body
}

// Failure is an engine's error that knows its category of unchecked.
type Failure struct {
	Category string // Limits, Encrypted, Timeout, Unavailable, Broken
	Err      error
}

// Error implements error.
func (f *Failure) Error() string { return f.Category + ": " + f.Err.Error() }

// Unwrap returns the cause.
func (f *Failure) Unwrap() error { return f.Err }

// Event is one line of the event log. Empty fields are left out; times are UTC. The schema is stable: fields are
// added, never renamed (docs/reference/events.md).
type Event struct {
	Time     time.Time `json:"time"`
	Event    string    `json:"event"` // "message", "connection", "not-inspected", "starttls-injection", …
	Conn     string    `json:"conn,omitempty"`
	Msg      string    `json:"msg,omitempty"`
	Door     Door      `json:"door,omitempty"`
	Divert   string    `json:"divert,omitempty"`
	Client   string    `json:"client,omitempty"`
	Server   string    `json:"server,omitempty"`
	User     string    `json:"user,omitempty"`
	From     string    `json:"from,omitempty"`
	To       []string  `json:"to,omitempty"`
	Subject  string    `json:"subject,omitempty"`
	Size     int64     `json:"size,omitempty"`
	Action   string    `json:"action,omitempty"`
	Reason   string    `json:"reason,omitempty"`
	Detail   string    `json:"detail,omitempty"`
	Item     string    `json:"quarantine,omitempty"`
	Findings []Finding `json:"findings,omitempty"`
}

// Recorder takes events. Record does not block and is safe for concurrent use.
type Recorder interface{ Record(Event) }

// RecorderFunc makes a function a Recorder.
type RecorderFunc func(Event)

// Record calls f.
func (f RecorderFunc) Record(e Event) { f(e) }

// Discarding is a Recorder that forgets.
var Discarding Recorder = RecorderFunc(func(Event) {})
