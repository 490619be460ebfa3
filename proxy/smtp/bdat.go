package smtp

import (
	"errors"
	"fmt"
	"io"

	"mailweir/inspect"
	"mailweir/inspect/spool"
	"mailweir/proxy/smtpwire"
)

// bdat takes one chunk of a message (RFC 3030). Its octets are read whatever becomes of it: if they were not, they
// would be read as commands.
func (s *session) bdat(c smtpwire.Command) error {
	size, last, err := smtpwire.ParseBDAT(c)
	if err != nil { // S-157: how many octets follow is not known
		return s.lastWord(501, "5.5.4", "Syntax error in BDAT, closing connection")
	}
	if err := s.settle(); err != nil && !s.amidLost() {
		return err
	}
	s.mu.Lock()
	tx, offered := s.tx, s.caps.Has("CHUNKING")
	s.mu.Unlock()
	var refusal []byte
	switch {
	case !offered: // S-023, S-162
		refusal = s.reply(502, "5.5.1", "Command not implemented")
	case tx == nil:
		refusal = s.reply(503, "5.5.1", "Need MAIL before BDAT")
	case len(tx.to) == 0:
		refusal = s.reply(503, "5.5.1", "No valid recipients")
	case tx.failed: // RFC 3030 §2: indeterminate until RSET
		refusal = s.reply(503, "5.5.1", "An earlier chunk was refused, RSET first")
	}
	if refusal != nil {
		if err := s.swallow(size); err != nil {
			return err
		}
		return s.answer(refusal)
	}
	return s.chunk(tx, size, last)
}

// amidLost reports whether the server has gone amid a message's chunks: the rest is read all the same, and then the
// client is told.
func (s *session) amidLost() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.down != nil && s.phase == phaseContent && s.tx != nil && s.tx.body != nil
}

// swallow reads octets of a refused chunk.
func (s *session) swallow(size int64) error {
	s.beginContent()
	defer s.enter(phaseCommands)
	_, err := io.CopyN(io.Discard, s.client.br, size)
	return err
}

// chunk puts a chunk behind those before it.
func (s *session) chunk(tx *transaction, size int64, last bool) error {
	if tx.body == nil {
		s.mu.Lock()
		tx.body = s.h.spool.Create()
		s.mu.Unlock()
	}
	refusal, err := s.readChunk(tx.body, size, &tx.ends)
	if err != nil {
		s.recordMessage(s.chunked(tx), "Aborted", "client-lost", nil)
		return err
	}
	switch {
	case refusal != nil && !last:
		tx.failed = true
		s.enter(phaseCommands)
		return s.answer(refusal)
	case last:
		m := s.chunked(tx)
		s.mu.Lock()
		tx.body = nil // it is the message's now
		s.mu.Unlock()
		defer m.close()
		if refusal != nil {
			m.odd, m.refusal = "spool", refusal
		}
		// Servers store chunks as they are, and hand them to readers as lenient as those of DATA.
		s.addView(m, tx.ends.bare(), func(w io.Writer) error { return canonical(w, inspect.Reader(m.body), reading{}) })
		s.addView(m, tx.ends.nul, func(w io.Writer) error { return canonical(w, inspect.Reader(m.body), reading{dropNUL: true}) })
		return s.settleMessage(m)
	}
	if s.serverLost() == nil {
		s.enter(phaseCommands) // with the server lost, the reply waits for LAST
	}
	return s.answer(s.reply(250, "2.0.0", fmt.Sprintf("%d octets received", size)))
}

// readChunk reads the octets of a chunk into the spool.
func (s *session) readChunk(body *spool.File, size int64, ends *lineEnds) (refusal []byte, err error) {
	s.beginContent()
	narrow := func() {}
	if size > lineBuffer {
		narrow = s.h.bulk.widen(s.client)
	}
	defer narrow()
	w := &sink{File: body}
	left := size
	for left > 0 {
		// By hand, since the octets are to be read even when they have nowhere to go.
		if _, err := s.client.br.Peek(1); err != nil {
			return nil, err
		}
		p, _ := s.client.br.Peek(int(min(left, int64(s.client.br.Buffered()))))
		if w.err == nil {
			ends.note(p)
			w.Write(p)
		}
		s.client.br.Discard(len(p))
		left -= int64(len(p))
	}
	switch {
	case w.err == nil:
		return nil, nil
	case errors.Is(w.err, spool.ErrTooLarge):
		refusal = s.reply(552, "5.3.4", "Message too big for the gateway")
	default:
		refusal = s.reply(452, "4.3.1", "Insufficient system storage")
	}
	s.log.Error("spool", "error", w.err)
	return refusal, nil
}

// chunked makes a message of a transaction's chunks.
func (s *session) chunked(tx *transaction) *message {
	m := s.newMessage(tx, tx.body)
	m.chunked = true
	return m
}
