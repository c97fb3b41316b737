// SPDX-License-Identifier: Apache-2.0

// Package process runs the lab's long-lived programs: detached from the command that started them, found again by recorded pid.
//
// The lab's command may be killed at any moment, and a later one must still find and stop every program. So each program has a
// record on disk, written before the program is made, and completed with its pid and the kernel's start time of that pid as soon
// as it exists. The start time guards against a pid that another program got meanwhile: such a pid is never signaled. Between the
// two writes the program is recognized by a variable in its environment.
//
// The package knows nothing of networks, Kubernetes or OVN, and must not import other packages of this module.
package process
