package smtp

import (
	"mailweir/proxy/smtpwire"
	"mailweir/tlsunwrap"
)

// firstBytes waits for whichever side speaks first and decides what the connection is (the server's direction reads
// the greeting at the same time).
func (s *session) firstBytes() error {
	if s.c.Implicit {
		s.opening = s.h.set.FirstBytes
	}
	s.boundary = true
	first, err := s.client.br.Peek(1)
	s.boundary = false
	s.opening = 0
	if err != nil {
		return err
	}
	if first[0] == 0x16 && !s.hasGreeted() {
		return s.earlyHello()
	}
	if s.hasGreeted() {
		return nil
	}
	// An early talker (S-004). Its commands can take their places behind the greeting that is still owed.
	s.special("early-talker", "")
	if s.h.set.EarlyTalker == "Hold" {
		return s.settle()
	}
	return nil
}

// earlyHello deals with a client that begins TLS at once: on a port for that, or by mistake on another (S-241).
func (s *session) earlyHello() error {
	first, err := s.client.br.Peek(6)
	if err != nil {
		return err
	}
	if !tlsunwrap.IsClientHello(first) {
		return nil // nextCommand refuses it
	}
	if !s.pauseServer() {
		return nil // the server greets in clear: the hello is garbage to it, and to nextCommand
	}
	return s.unwrap(s.client.unread()) // the greeting is still owed
}

// pauseServer makes the server's direction pause before its first octet. It returns false when there is one already.
func (s *session) pauseServer() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.park = parkAsked
	s.armServer()
	for s.park == parkAsked && !s.greeted && s.down == nil {
		s.cond.Wait()
	}
	if s.park == parkDone && s.server.received.Load() == 0 {
		return true
	}
	s.park = parkNone
	s.armServer()
	s.cond.Broadcast()
	return false
}

func (s *session) hasGreeted() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.greeted
}

// greetingLine passes on a line of a greeting that has more of them, at once (S-003). Only the server's direction
// calls it.
func (s *session) greetingLine(line []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.client.out = append(s.client.out, line...)
	s.greetingSent += len(line)
	return nil
}

// greet deals with the end of the greeting and returns what of it the client has not got yet. s.mu is held.
func (s *session) greet(r *smtpwire.Reply) []byte {
	s.greeted = true
	return r.Raw[s.greetingSent:]
}
