package tlsunwrap

import (
	"crypto/rand"
	"crypto/tls"
	"sync"
	"time"
)

// ticketLife is how long a key makes new tickets; for as long again it is known for old ones. So a key lives for a day,
// in memory only.
const ticketLife = 12 * time.Hour

// tickets makes and reads the tickets with which clients resume their sessions.
type tickets struct {
	mu   sync.Mutex
	keys tls.Config // holds the keys, and nothing else
	cur  [32]byte
	born time.Time
}

// at returns the keys as they are to be at now.
func (t *tickets) at(now time.Time) *tls.Config {
	t.mu.Lock()
	defer t.mu.Unlock()
	age := now.Sub(t.born)
	if age < ticketLife {
		return &t.keys
	}
	old := t.cur
	rand.Read(t.cur[:]) // it never fails: the process would end
	if age < 2*ticketLife {
		t.keys.SetSessionTicketKeys([][32]byte{t.cur, old})
	} else {
		t.keys.SetSessionTicketKeys([][32]byte{t.cur})
	}
	t.born = now
	return &t.keys
}
