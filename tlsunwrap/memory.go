package tlsunwrap

import (
	"container/list"
	"sync"
	"time"
)

const (
	maxSessions = 4096 // upstream sessions that can be resumed
	maxVerified = 4096 // destinations known to be verified
	maxDistrust = 4096 // pairs of client and destination that are watched
)

// memory holds a bounded number of keys, each with a number and the time until which it counts. The one that was
// touched longest ago goes first.
type memory struct {
	mu    sync.Mutex
	max   int
	order *list.List // of *memo, last touched first
	memos map[string]*list.Element
}

type memo struct {
	key   string
	n     int
	until time.Time
}

func newMemory(max int) *memory {
	return &memory{max: max, order: list.New(), memos: map[string]*list.Element{}}
}

// has reports whether key counts at now.
func (m *memory) has(key string, now time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	el, ok := m.memos[key]
	return ok && now.Before(el.Value.(*memo).until)
}

// add raises the number of key by one and returns it. A key that is new or no longer counts starts from 1 and counts
// for life.
func (m *memory) add(key string, now time.Time, life time.Duration) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	el, ok := m.memos[key]
	if ok {
		m.order.MoveToFront(el)
	} else {
		el = m.order.PushFront(&memo{key: key})
		m.memos[key] = el
	}
	x := el.Value.(*memo)
	if !now.Before(x.until) {
		x.n, x.until = 0, now.Add(life)
	}
	x.n++
	for m.order.Len() > m.max {
		old := m.order.Back()
		m.order.Remove(old)
		delete(m.memos, old.Value.(*memo).key)
	}
	return x.n
}

func (m *memory) size() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.order.Len()
}
