// SPDX-License-Identifier: Apache-2.0

package program

import (
	"fmt"
	"net/netip"
	"strings"
)

// Prefixes is a flag.Value: a comma separated list of prefixes.
type Prefixes []netip.Prefix

// String is the list as given.
func (p *Prefixes) String() string {
	if p == nil {
		return ""
	}
	var texts []string
	for _, prefix := range *p {
		texts = append(texts, prefix.String())
	}
	return strings.Join(texts, ",")
}

// Set replaces the list.
func (p *Prefixes) Set(text string) error {
	var list []netip.Prefix
	for _, part := range strings.Split(text, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		prefix, err := netip.ParsePrefix(part)
		if err != nil {
			return fmt.Errorf("%q is not a prefix like 10.244.0.0/16", part)
		}
		list = append(list, prefix.Masked())
	}
	*p = list
	return nil
}
