// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"
)

// TestLock: a command waits for one that ends soon, as a killed one does when the last of its children
// executes its program, and refuses to work beside one that goes on.
func TestLock(t *testing.T) {
	if err := os.MkdirAll(stateDir, 0o755); err != nil {
		t.Skipf("labs need root: %v", err)
	}
	o := Options{Prefix: "mll"}
	t.Cleanup(func() { _ = os.Remove(o.dir() + ".lock") })
	first, err := o.lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := o.lock(ctx); err == nil || !strings.Contains(err.Error(), "by another command") {
		t.Fatalf("two commands hold the lock: error %v", err)
	}
	time.AfterFunc(100*time.Millisecond, first)
	second, err := o.lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	second()
}
