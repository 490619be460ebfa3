package smtp

import (
	"bufio"
	"bytes"
	"io"

	"mailweir/inspect"
)

// reading is how a receiver more lenient than the gateway may read content.
type reading struct {
	dropNUL bool // it drops NULs
	unstuff bool // it removes dots behind line ends that are not CRLF, too
}

// lineEnds is what has been seen of the line ends of content that needs none.
type lineEnds struct {
	cr, lf, nul bool
	open        bool // the last octet was a CR
}

// note looks at the next octets.
func (e *lineEnds) note(p []byte) {
	if len(p) == 0 {
		return
	}
	e.nul = e.nul || bytes.IndexByte(p, 0) >= 0
	if e.open && p[0] != '\n' {
		e.cr = true
	}
	crs, lfs, pairs := bytes.Count(p, []byte{'\r'}), bytes.Count(p, []byte{'\n'}), bytes.Count(p, []byte("\r\n"))
	if e.open && p[0] == '\n' {
		lfs--
	}
	if e.open = p[len(p)-1] == '\r'; e.open {
		crs--
	}
	e.cr, e.lf = e.cr || crs > pairs, e.lf || lfs > pairs
}

// bare tells, at the end, whether some line ended in a CR or LF alone.
func (e *lineEnds) bare() bool { return e.cr || e.lf || e.open }

// canonical writes r as such a receiver reads it, which takes every CR, LF and CRLF for the end of a line. Lines keep
// everything else.
func canonical(w io.Writer, r io.Reader, as reading) error {
	in := bufio.NewReaderSize(r, bulkBuffer/2)
	out := bufio.NewWriterSize(w, bulkBuffer/2)
	var cr bool   // the last octet was a CR
	var bare bool // a line has just begun behind a CR or LF alone
	for {
		c, err := in.ReadByte()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		switch {
		case c == 0 && as.dropNUL:
			continue
		case c == '\n' && cr: // the CR has written the line end
			bare, cr = false, false
			continue
		case c == '\r' || c == '\n':
			out.WriteString("\r\n")
			bare, cr = true, c == '\r'
			continue
		case c == '.' && bare && as.unstuff: // behind a proper CRLF the dot reader has removed it
			bare, cr = false, false
			continue
		}
		bare, cr = false, false
		out.WriteByte(c)
	}
	return out.Flush()
}

// withDots writes body with the dots at the given offsets that were removed as stuffing though there was only one: the
// reading of a receiver that removes the first of two dots only.
func withDots(w io.Writer, body inspect.Body, missing []int64) error {
	var at int64
	for _, off := range missing {
		if _, err := io.Copy(w, io.NewSectionReader(body, at, off-at)); err != nil {
			return err
		}
		if _, err := w.Write([]byte{'.'}); err != nil {
			return err
		}
		at = off
	}
	_, err := io.Copy(w, io.NewSectionReader(body, at, body.Size()-at))
	return err
}
