// Package dot reads and writes dot-terminated blocks as in SMTP DATA (RFC 5321 §4.5.2) and POP3 (RFC 1939 §3).
//
// There is one reading: a line ends with CRLF and with nothing else, and the block ends with exactly CRLF.CRLF, where
// the CRLF of the command line that began the block counts as the first. [Reader] gives the content without stuffing
// and leaves what follows the end unread; [Writer] stuffs, and writes the end only when it is told to. What a more
// lenient peer would read otherwise is reported in [Info]; a Writer refuses to send it. For every block without
// EOD-like sequences and with all of its unstuffed dots known, the octets that the Writer puts on the wire are those
// that the Reader took from it.
//
// Memory does not depend on the input: there is no line buffer, and the lists of offsets in Info hold at most
// [MaxOffsets] entries each.
package dot

import "errors"

// MaxOffsets bounds the lists of offsets in Info.
const MaxOffsets = 4096

var (
	// ErrAmbiguous is returned by Writer when the octets to be written hold something that lenient peers take for
	// the end of data. The octet that would complete it has not been written.
	ErrAmbiguous = errors.New("content holds a sequence like the end of data")

	// ErrNoFinalCRLF is returned by Writer.Finish when the content does not end in CRLF and so has no exact
	// dot-terminated form.
	ErrNoFinalCRLF = errors.New("content does not end in CRLF")

	// ErrFinished is returned by Writer when it is used after Finish or after an error.
	ErrFinished = errors.New("dot writer is finished")
)

// Info is what a Reader noticed. It is complete once the Reader has returned io.EOF.
type Info struct {
	Octets  int64 // octets of content, unstuffed
	Wire    int64 // octets taken from the wire before the final dot: Octets plus the dots that were removed
	Longest int64 // octets of the longest line, without its CRLF

	BareCR int64 // CRs without LF
	BareLF int64 // LFs without CR
	NUL    int64

	// EODLike counts matches of [\r\n]\0*\.\0*[\r\n] in CRLF and the wire octets before the end: places where some
	// server would end the message early. Mail whose lines all end in CRLF never has any.
	EODLike int64
	// EODAt is the content offset of the octet that completed the first of them.
	EODAt int64

	// Missing are the content offsets at which a line began with a single dot that was not stuffed (".x"): the dot
	// was removed, as RFC 5321 §4.5.2 demands, and Writer puts it back.
	Missing []int64
	// MissingOverflow: there were more than MaxOffsets of them, so the block cannot be written back exactly.
	MissingOverflow bool

	// Loose are the content offsets of dots that follow a bare CR or LF (or NULs at the begin of a line): no line
	// begins there, but a lenient reader would remove them as stuffing.
	Loose []int64
	// LooseOverflow: there were more than MaxOffsets of them.
	LooseOverflow bool
}

// Exact reports whether a Writer can give the block back octet for octet and without an EOD-like sequence.
func (i *Info) Exact() bool { return i.EODLike == 0 && !i.MissingOverflow }
