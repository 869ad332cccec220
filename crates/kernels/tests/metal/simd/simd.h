// Included by what naga writes; all that it needs is in metal_stdlib.
#pragma once
