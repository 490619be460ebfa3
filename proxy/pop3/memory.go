package pop3

import (
	"crypto/sha256"
	"io"
	"net/netip"
	"sync"
	"time"

	"mailweir/inspect"
)

const (
	memoryTime   = 15 * time.Minute // as long as signatures may be out of date anyway
	memoryCount  = 20000            // verdicts
	memoryOctets = 32 << 20         // of replacements
	memoryEach   = 1 << 20          // of one
)

// memory is what one session has learned and the next may need: verdicts by content, so that a client that comes back
// after it gave up waiting is served at once (P-083), and what was replaced by UIDL, for the sizes in LIST.
type memory struct {
	mu      sync.Mutex
	verdict map[memoryKey]remembered
	sizes   map[[32]byte]sizes
	octets  int
	now     func() time.Time
}

// memoryKey is what a verdict depends on.
type memoryKey struct {
	server netip.AddrPort
	user   string
	sum    [32]byte
}

type remembered struct {
	until  time.Time
	action action
	body   []byte
}

// sizes are those of a replaced message: as the server tells it, and as it is served.
type sizes struct{ original, size int64 }

func newMemory() *memory {
	return &memory{verdict: map[memoryKey]remembered{}, sizes: map[[32]byte]sizes{}, now: time.Now}
}

// outcome returns what was kept, or nil.
func (m *memory) outcome(k memoryKey) *outcome {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, ok := m.verdict[k]
	if !ok {
		return nil
	}
	if m.now().After(r.until) {
		m.forget(k)
		return nil
	}
	return &outcome{action: r.action, body: inspect.Bytes(r.body)}
}

// keep keeps an outcome, unless it is one that may be another next time, or is too big.
func (m *memory) keep(k memoryKey, o *outcome) {
	r := remembered{until: m.now().Add(memoryTime), action: o.action}
	switch o.action {
	case held:
		return
	case replaced:
		if o.body.Size() > memoryEach {
			return
		}
		b, err := io.ReadAll(inspect.Reader(o.body))
		if err != nil {
			return
		}
		r.body = b
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.forget(k)
	for old := range m.verdict { // whichever come first
		if len(m.verdict) < memoryCount && m.octets+len(r.body) <= memoryOctets {
			break
		}
		m.forget(old)
	}
	m.verdict[k] = r
	m.octets += len(r.body)
}

// forget removes a verdict. m.mu is held.
func (m *memory) forget(k memoryKey) {
	m.octets -= len(m.verdict[k].body)
	delete(m.verdict, k)
}

// uidlKey names a message of an account.
func (s *session) uidlKey(uidl string) [32]byte {
	return sha256.Sum256([]byte(s.c.Server.String() + "\x00" + s.state.user + "\x00" + uidl))
}

func (m *memory) keepSizes(k [32]byte, z sizes) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for old := range m.sizes {
		if len(m.sizes) < memoryCount {
			break
		}
		delete(m.sizes, old)
	}
	m.sizes[k] = z
}

func (m *memory) sizesOf(k [32]byte) (sizes, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	z, ok := m.sizes[k]
	return z, ok
}
