// <cstring> for the run-time compiler, which has memcpy itself.
#pragma once
