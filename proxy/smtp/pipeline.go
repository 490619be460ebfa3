package smtp

import (
	"errors"
	"time"

	"mailweir/proxy/smtpwire"
)

// maxOutstanding is how many commands may wait for their replies before the client is not read any more (S-113).
const maxOutstanding = 1000

// pending is one command whose reply has not been given to the client yet. Replies are paired with commands by their
// order and by nothing else (RFC 2920 §3.1), so whatever expects a reply or makes one takes its place here.
type pending struct {
	kind  replyKind
	local []byte          // a reply of ours, complete: the server was not asked
	own   *smtpwire.Reply // where the reply goes, for those who wait for it

	path   string // MAIL, RCPT: the address; EHLO: its argument
	size   int64  // MAIL: the declared size
	binary bool   // MAIL: BODY=BINARYMIME
	lmtp   bool   // LHLO
}

// replyKind says what a reply means for the session.
type replyKind uint8

const (
	plainReply replyKind = iota
	greetingReply
	ehloReply // EHLO, LHLO: filtered
	heloReply
	mailReply
	rcptReply
	resetReply // RSET, and whatever else ends a transaction when it succeeds
	tlsReply   // STARTTLS: the reader of the server stops on 220
	authReply
	finalReply // of a message: relayed as it is
	quitReply
	restartReply // XCLIENT: a new greeting on success
	quietReply   // our own RSET: nobody wants to know, unless it fails
	noopReply    // our own NOOP
	answerReply  // our own DATA: into pending.own
)

// queue is a first-in first-out list without allocation in the steady state.
type queue struct {
	list []pending
	head int
}

func (q *queue) len() int { return len(q.list) - q.head }

func (q *queue) push(p pending) {
	if q.head > 0 && len(q.list) == cap(q.list) {
		n := copy(q.list, q.list[q.head:])
		clear(q.list[n:])
		q.list, q.head = q.list[:n], 0
	}
	q.list = append(q.list, p)
}

// awaits reports whether a reply of that kind is outstanding.
func (q *queue) awaits(kind replyKind) bool {
	for i := q.head; i < len(q.list); i++ {
		if q.list[i].kind == kind {
			return true
		}
	}
	return false
}

func (q *queue) first() *pending { return &q.list[q.head] }

func (q *queue) pop() pending {
	p := q.list[q.head]
	q.list[q.head] = pending{}
	q.head++
	if q.head == len(q.list) {
		q.list, q.head = q.list[:0], 0
		if cap(q.list) > 64 {
			q.list = nil // an idle session holds nothing of a busy past
		}
	}
	return p
}

// expect takes the next place in the queue for a command that is about to be sent. It waits while the queue is full.
// Only the client's direction calls it.
func (s *session) expect(p pending) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.room(); err != nil {
		return err
	}
	s.fifo.push(p)
	if s.fifo.len() == 1 {
		s.armServer()
	}
	return nil
}

// answer gives the client a reply of ours in its turn.
func (s *session) answer(reply []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fifo.len() > 0 {
		if err := s.room(); err != nil {
			return err
		}
	}
	// Looked at again: while we waited for room, everything may have been answered. A reply of ours at the head of the
	// queue would wait for ever for a reply of the server to follow.
	if s.fifo.len() > 0 {
		s.fifo.push(pending{local: reply})
		return nil
	}
	s.client.out = append(s.client.out, reply...)
	if len(s.client.out) < lineBuffer {
		return nil // more may follow; whoever waits next flushes
	}
	return s.client.flush()
}

// room waits until the queue has a free place. s.mu is held.
func (s *session) room() error {
	if s.fifo.len() < maxOutstanding {
		return s.down
	}
	s.mu.Unlock()
	err := s.server.flush() // outside of the lock: the server may be waiting for us to read
	s.mu.Lock()
	for err == nil && s.down == nil && s.fifo.len() >= maxOutstanding {
		s.cond.Wait()
	}
	return errors.Join(err, s.down)
}

// settle sends everything that waits, and waits until every command has its reply.
func (s *session) settle() error {
	if err := s.server.flush(); err != nil {
		return s.serverWriteFailed(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.client.flush(); err != nil {
		return err
	}
	for s.fifo.len() > 0 && s.down == nil {
		s.cond.Wait()
	}
	if s.down != nil {
		return s.down
	}
	return s.client.flush()
}

// flushClient gives the client what waits for it, before something that takes time.
func (s *session) flushClient() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.client.flush()
}

// taken removes the first entry of the queue, whose reply has been dealt with, and then gives the client the replies
// of ours that follow it. s.mu is held.
func (s *session) taken() {
	s.fifo.pop()
	for s.fifo.len() > 0 && s.fifo.first().local != nil {
		s.client.out = append(s.client.out, s.fifo.pop().local...)
	}
	s.armServer()
	s.cond.Broadcast()
}

// armServer sets the deadline of the server's leg as the state of the session demands. s.mu is held.
func (s *session) armServer() {
	now := time.Now()
	switch {
	case s.ended || s.park == parkAsked:
		s.serverDue = past
	case s.serverBroken:
		s.serverDue = now.Add(time.Second) // whatever it has still said is read, then that is it
	case s.leaving && (s.fifo.len() <= 1 || !s.greeted): // nothing but the reply to QUIT, or a greeting for nobody
		s.serverDue = now.Add(leaveTimeout)
	case s.fifo.len() > 0:
		s.serverDue = now.Add(s.h.set.ReplyTimeout)
	case s.phase == phaseContent && s.noops < maxKeepAlives:
		s.serverDue = now.Add(s.h.set.KeepAlive)
	default:
		s.serverDue = time.Time{} // an idle session is the client's business, and the server's own
	}
	s.server.raw.SetReadDeadline(s.serverDue)
	if s.ctx.Err() != nil {
		s.server.raw.SetReadDeadline(past)
	}
}
