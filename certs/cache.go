package certs

import (
	"container/list"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"sync"
	"time"
)

// leafID says what a leaf was minted for: which server certificate, by which authority, with which kind of key.
type leafID struct {
	like         [sha256.Size]byte
	trusted, rsa bool
}

// cache keeps the leaves used last. Whoever asks for a leaf that is being made waits for it.
type cache struct {
	mu     sync.Mutex
	max    int
	order  *list.List // of *entry, most recently used first
	leaves map[leafID]*list.Element
}

type entry struct {
	id    leafID
	until time.Time
	ready chan struct{} // closed once cert or err is set
	cert  *tls.Certificate
	err   error
}

func newCache(max int) *cache {
	return &cache{max: max, order: list.New(), leaves: map[leafID]*list.Element{}}
}

// get returns the leaf of id, made by mint unless there is one that is fresh.
func (c *cache) get(id leafID, now time.Time, mint func() (*tls.Certificate, error)) (*tls.Certificate, error) {
	c.mu.Lock()
	if el, ok := c.leaves[id]; ok {
		e := el.Value.(*entry)
		if now.Before(e.until) {
			c.order.MoveToFront(el)
			c.mu.Unlock()
			<-e.ready
			return e.cert, e.err
		}
		c.drop(el)
	}
	e := &entry{id: id, until: now.Add(leafReuse), ready: make(chan struct{})}
	el := c.order.PushFront(e)
	c.leaves[id] = el
	for c.order.Len() > c.max {
		c.drop(c.order.Back())
	}
	c.mu.Unlock()

	e.fill(mint)
	if e.err != nil { // the next one tries again
		c.mu.Lock()
		if c.leaves[id] == el {
			c.drop(el)
		}
		c.mu.Unlock()
	}
	return e.cert, e.err
}

// fill makes the leaf; those who wait are released even if mint panics.
func (e *entry) fill(mint func() (*tls.Certificate, error)) {
	defer close(e.ready)
	e.err = errors.New("mint leaf: it did not end")
	e.cert, e.err = mint()
}

// drop forgets el. The caller holds mu.
func (c *cache) drop(el *list.Element) {
	c.order.Remove(el)
	delete(c.leaves, el.Value.(*entry).id)
}

func (c *cache) size() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.order.Len()
}
