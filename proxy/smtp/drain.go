package smtp

import "sync"

// drain wakes sessions that wait for a command when the gateway is about to stop. There is one for each channel that
// announces it, and one goroutine for each drain, so that sessions need none of their own: the first session starts
// it, the last one waits for its end.
type drain struct {
	mu       sync.Mutex
	sessions map[*session]struct{}
	begun    bool
	stop     chan struct{}
	done     chan struct{}
}

// watchDrain makes s notice when draining is closed, until the returned function is called.
func (h *Handler) watchDrain(draining <-chan struct{}, s *session) (forget func()) {
	h.mu.Lock()
	d := h.drains[draining]
	if d == nil {
		d = &drain{sessions: map[*session]struct{}{}, stop: make(chan struct{}), done: make(chan struct{})}
		h.drains[draining] = d
		go d.run(draining)
	}
	d.add(s)
	h.mu.Unlock()
	return func() {
		h.mu.Lock()
		last := d.remove(s)
		if last {
			delete(h.drains, draining)
		}
		h.mu.Unlock()
		if last {
			close(d.stop)
			<-d.done
		}
	}
}

func (d *drain) run(draining <-chan struct{}) {
	defer close(d.done)
	select {
	case <-d.stop:
		return
	case <-draining:
	}
	d.mu.Lock()
	d.begun = true
	for s := range d.sessions {
		s.drain()
	}
	d.mu.Unlock()
	<-d.stop
}

func (d *drain) add(s *session) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sessions[s] = struct{}{}
	if d.begun {
		s.drain()
	}
}

func (d *drain) remove(s *session) (last bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.sessions, s)
	return len(d.sessions) == 0
}
