package proxytest

// EODModel is one way in which a lenient server might find the end of data. The models are ours; real servers were
// their teachers (interception rule 3 of DATA framing).
type EODModel struct {
	Name    string
	ends    byte // see the constants
	dropNUL bool
}

// What ends a line in a model.
const (
	endCRLF     = iota // CRLF
	endLF              // LF, one CR before it belongs to the end
	endCRsLF           // any number of CRs and LF
	endAny             // CR, LF or CRLF
	endCRsLForC        // any number of CRs and LF, or CR
)

// EODModels returns all ten: five kinds of line ends, with NULs kept and dropped. The first is the strict one.
func EODModels() []EODModel {
	var list []EODModel
	for _, drop := range []bool{false, true} {
		for ends, name := range []string{"CRLF", "LF", "CR*LF", "CR/LF/CRLF", "CR*LF/CR"} {
			if drop {
				name += " without NUL"
			}
			list = append(list, EODModel{name, byte(ends), drop})
		}
	}
	return list
}

// End returns the index behind the first end of data in the octets that follow the CRLF of DATA, or -1. Each end is
// taken as early as the model can: a server that ends a line at CR does not wait for an LF.
func (m EODModel) End(b []byte) int {
	// state: what the current line is so far
	const (
		begin  = iota // nothing
		dot           // one dot
		dotCR         // a dot and CRs that may belong to the line's end
		crs           // no text yet but CRs that may belong to the line's end
		text          // anything else
		textCR        // text and a CR that may begin the line's end
	)
	state := begin
	for i, c := range b {
		if c == 0 && m.dropNUL {
			continue
		}
		switch c {
		case '\n':
			switch state {
			case dot:
				if m.ends != endCRLF {
					return i + 1
				}
				state = text
			case dotCR:
				return i + 1
			case textCR, crs:
				state = begin
			case begin:
				if m.ends == endCRLF {
					state = text
				}
			case text:
				if m.ends != endCRLF {
					state = begin
				}
			}
		case '\r':
			if m.ends == endAny || m.ends == endCRsLForC {
				if state == dot {
					return i + 1
				}
				// CRLF: the LF makes one more line, an empty one, which changes nothing for dots.
				state = begin
				continue
			}
			switch state {
			case begin:
				state = crs
			case dot:
				state = dotCR
			case dotCR:
				if m.ends != endCRsLF { // one CR only
					state = textCR
				}
			case crs, textCR:
				if m.ends != endCRsLF {
					state = textCR
				}
			default:
				state = textCR
			}
		case '.':
			if state == begin {
				state = dot
			} else {
				state = text
			}
		default:
			state = text
		}
	}
	return -1
}
