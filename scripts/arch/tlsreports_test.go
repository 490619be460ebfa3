package arch

import (
	"strings"
	"testing"
)

// TestT076 finds the page that tells administrators what the gateway causes in TLS reports, and what to do.
func TestT076(t *testing.T) {
	all := pages(t)
	page := all["docs/guide/tls-reports.md"]
	for _, word := range []string{"TLSRPT", "RFC 8460", "MTA-STS", "DANE", "`certificate-not-trusted`", "`tlsa-invalid`", "LinuxFirewall.ServeCert", "`testing`", "`enforce`"} {
		if !strings.Contains(page, word) {
			t.Errorf("T-076: docs/guide/tls-reports.md does not name %s", word)
		}
	}
	if !strings.Contains(all["docs/guide/README.md"], "(tls-reports.md)") {
		t.Error("T-076: the guide's contents do not list the page")
	}
}
